"""Trees of several rounds: branches of branches, siblings, spare budgets, what is cut off, and log-probs in time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar

import pytest
import torch

from appo.advantages import GroupAdvantage
from appo.core.batch import TrajectoryBatch
from appo.functional import turn_starts
from appo.rollouts import Branching, IterationRunner, Policy, RolloutRequest
from appo.rollouts.branching import choose_branch_points
from appo.rollouts.tree import Tree
from appo.scorers import BatchContext, RandomPosition, Scorer, Scores
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.collecting import Later, collect, make_branching, make_collector, make_prompts
from tests.rollouts.conftest import ScriptedEngine


class Answering(ScriptedEngine):
    """Follows its script and, where that says nothing, ends at once behind an "a"."""

    def __init__(self, tokenizer, turns) -> None:
        super().__init__(tokenizer, turns)
        self.turns = defaultdict(lambda: cycle([f"a{EOS}"]), self.turns)


def _requests(collector) -> list[RolloutRequest]:
    """What the collector asks its agent for from now on."""
    seen: list[RolloutRequest] = []
    begin = collector.agent.begin
    collector.agent.begin = lambda requests, sampling: seen.extend(requests) or begin(requests, sampling)
    return seen


def test_the_second_round_branches_the_branches_of_the_first(tokenizer, runner):
    engine = Answering(tokenizer, {"P": f"aab c{EOS}"})
    collector = make_collector(engine, runner, make_branching(1, 2, rounds=2, train_on="both", min_remaining=0.0))
    requests = _requests(collector)
    data = collect(collector, make_prompts(tokenizer, "P"))
    # "c" at 5 is the last candidate of the root, and the "a" at 6 that of its branch.
    assert [t.text for t in data.trajectories] == ["aab c", "aab ca", "aab caa"]
    assert data.batch.parent.tolist() == [-1, 0, 1]
    assert data.batch.branch_position.tolist() == [-1, 5, 6]
    assert data.batch.rewards.tolist() == [2.0, 3.0, 4.0]
    assert len({request.seed for request in requests}) == 3
    assert data.scores.values.shape[0] == 2  # those of the second round
    # Every sampled token is trained once: 6 of the root, and the two that each branch has of its own.
    assert data.batch.trained.sum(-1).tolist() == [6, 2, 2]
    (batch,) = (prompt.batch() for prompt in data.by_prompt())
    assert (len(batch), batch.num_trajectories) == (3, 3)


def test_what_rows_share_is_a_candidate_once(tokenizer, runner):
    engine = Answering(tokenizer, {"P": f"bbb{EOS}"})
    branching = make_branching(1, 8, rounds=2, train_on="both", min_remaining=0.0, repeat=False)
    data = collect(make_collector(engine, runner, branching), make_prompts(tokenizer, "P"))
    # The root has 3 candidates, and each of its branches has one of its own: the "a" that it begins with.
    points = [(data.trajectories.index(point.trajectory), point.position) for point in data.points]
    assert points[:3] == [(0, 3), (0, 2), (0, 1)]
    assert sorted(points[3:]) == [(0, 2), (0, 3), (1, 4), (2, 3)]


def test_a_token_that_was_drawn_anew_is_a_choice_of_the_parent_alone(tokenizer, runner):
    engine = Answering(tokenizer, {"P": f"bbb{EOS}"})
    collector = make_collector(engine, runner, make_branching(1, 1, min_remaining=0.0))
    data = collect(collector, make_prompts(tokenizer, "P"))
    values = torch.full(data.batch.token_ids.shape, float("-inf"))
    values[1, 4] = 2.0  # the first token of the branch, which left behind position 3 of the root
    values[0, 4] = 1.0  # what the root has there
    for split, expected in (("keep", [(1, 4, 2.0), (0, 4, 1.0)]), ("resample", [(0, 3, 1.0)])):
        chosen = choose_branch_points(
            Scores(values),
            torch.ones(values.shape, dtype=torch.bool),
            torch.ones(2, dtype=torch.bool),
            data.batch,
            data.trajectories,
            Branching(split=split, siblings=2),
            {"P": 4},
        )
        points = [(data.trajectories.index(p.trajectory), p.position, p.score) for p in chosen]
        assert points == [point for point in expected for _ in range(2)]


@dataclass(frozen=True)
class Turns(Scorer):
    """Every turn alike."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        return Scores(
            torch.zeros(batch.token_ids.shape).where(turn_starts(batch.response_mask), float("-inf")), at_turns=True
        )


@pytest.mark.parametrize("scorer", [Later(), RandomPosition(), Turns()])
@pytest.mark.parametrize("split", ["keep", "resample"])
def test_a_round_chooses_no_point_twice_and_none_but_on_possible_parents(tokenizer, runner, scorer, split):
    engine = Answering(tokenizer, {"P": [f"ba{EOS}", f"abb{EOS}", f"bbb{EOS}"]})
    branching = make_branching(3, 36, rounds=3, siblings=2, split=split, parents="right", min_remaining=0.0)
    collector = make_collector(engine, runner, branching, room=32, scorer=scorer)
    rounds = []

    def choose(scores, allowed, parents, *others):
        chosen = choose_branch_points(scores, allowed, parents, *others)
        trajectories = others[1]
        possible = {id(t) for t, is_parent in zip(trajectories, parents.tolist(), strict=True) if is_parent}
        rounds.append(([(id(point.trajectory), point.position) for point in chosen], possible))
        return chosen

    collector.choose = choose
    collect(collector, make_prompts(tokenizer, "P"))
    assert len(rounds) == 3
    for points, possible in rounds:
        assert points
        assert set(Counter(points).values()) == {2}
        assert {trajectory for trajectory, _ in points} <= possible


@pytest.mark.parametrize("others", ["", "Q"])
def test_whom_a_round_draws_does_not_depend_on_the_prompts_beside(tokenizer, runner, others):
    def points_of_r(names: str) -> list[tuple[str, int]]:
        script = {name: [f"{'b' * n}{EOS}" for n in (3, 4, 5)] for name in "QR"}
        branching = make_branching(3, 9, rounds=3, selection="per_trajectory", min_remaining=0.0)
        collector = make_collector(Answering(tokenizer, script), runner, branching, room=32)
        data = collect(collector, make_prompts(tokenizer, names))
        of_r = [point for point in data.points if point.trajectory.prompt.id == "R"]
        return [(point.trajectory.text, point.position) for point in of_r]

    # As on two processes, of which another has the other prompts.
    assert points_of_r(f"{others}R") == points_of_r("RQ")


def test_siblings_leave_one_point_with_seeds_of_their_own(tokenizer, runner):
    engine = Answering(tokenizer, {"P": f"bbb{EOS}"})
    collector = make_collector(engine, runner, make_branching(1, 4, siblings=2, min_remaining=0.0))
    requests = _requests(collector)
    data = collect(collector, make_prompts(tokenizer, "P"))
    assert [point.position for point in data.points] == [3, 3, 2, 2]
    assert len({request.seed for request in requests}) == 5


def test_branches_leave_only_where_the_policy_was_unsure(tokenizer, runner):
    engine = Answering(tokenizer, {"P": f"bbb{EOS}"})
    # The entropy of a token is its position here, 1 to 4; the last one is no candidate.
    branching = make_branching(1, 3, min_entropy=2.0, min_remaining=0.0)
    collector = make_collector(engine, runner, branching, scorer=RandomPosition())
    data = collect(collector, make_prompts(tokenizer, "P"))
    assert sorted(point.position for point in data.points) == [2, 3]
    with pytest.raises(ValueError, match=r"rollout.branching.min_entropy must not be negative, got -1"):
        make_branching(1, 1, min_entropy=-1.0)


@pytest.mark.parametrize(("spare", "texts"), [("roots", ["a", "a"]), ("drop", []), ("others", [])])
def test_prompts_whose_roots_are_alike_are_not_branched(tokenizer, runner, spare, texts):
    script = {"P": [f"b{EOS}", f"b{EOS}", f"a{EOS}"], "Q": [f"bb{EOS}", f"aab{EOS}"]}
    engine = Answering(tokenizer, script)
    branching = make_branching(2, 2, parents="mixed", spare_budget=spare, min_remaining=0.0)
    collector = make_collector(engine, runner, branching)
    roots = collector.sample_roots(make_prompts(tokenizer, "PQ"), iteration=0)
    requests = _requests(collector)
    data = collector.collect(Tree.of_roots(roots), iteration=0)
    assert {point.trajectory.prompt.id for point in data.points} == {"Q"}
    assert len(data.points) == (4 if spare == "others" else 2)
    further = [t.text for t in data.trajectories[4:] if t.origin is None]
    assert further == (["a", "b"] if texts else [])
    if texts:
        seeds = [request.seed for request in collector.requests.roots(make_prompts(tokenizer, "P"), 0)]
        assert not {request.seed for request in requests} & set(seeds)
        # They belong to the group of their prompt.
        assert data.batch.group[data.batch.parent < 0].tolist().count(0) == 4


@pytest.mark.parametrize("spare", ["roots", "drop", "others"])
@pytest.mark.parametrize(("when", "lag"), [("iteration", 0), ("minibatch", 0), ("iteration", 1)])
def test_every_token_that_is_sampled_is_counted(tokenizer, runner, spare, when, lag):
    script = {"P": [f"b{EOS}", f"b{EOS}", f"a{EOS}"], "Q": [f"bb{EOS}", f"aab{EOS}"]}
    branching = make_branching(2, 4, rounds=2, when=when, parents="mixed", spare_budget=spare, min_remaining=0.0)
    collector = make_collector(Answering(tokenizer, script), runner, branching)
    iterations = IterationRunner(collector, lambda: None, num_minibatches=2, lag=lag, replacement_rounds=1)
    p, q, r, s, t, u = make_prompts(tokenizer, "PQRSTU")
    for _ in iterations.run(0, [p, q], [r, s], [t, u]):
        pass
    assert iterations.pop_num_sampled_tokens() == collector.agent.pop_costs().num_tokens


@pytest.mark.parametrize("truncated", ["penalize", "mask"])
def test_a_branch_that_is_cut_off_does_not_count_and_of_roots_the_option_decides(tokenizer, runner, truncated):
    # Eight tokens are the limit: the first root of P and the branch of Q are cut off.
    engine = Answering(tokenizer, {"P": ["bbbbbbbbb", f"aa{EOS}"], "Q": [f"b{EOS}", f"aa{EOS}"], "Qaa": "bbbbbbbbb"})
    branching = make_branching(2, 1, parents="any", train_on="both", min_remaining=0.0)
    collector = make_collector(engine, runner, branching, advantage=GroupAdvantage(std="none"), truncated=truncated)
    data = collect(collector, make_prompts(tokenizer, "PQ"))
    rows = {(t.prompt.id, t.origin is None, t.finish_reason): row for row, t in enumerate(data.trajectories)}
    cut_root, cut_branch = rows["P", True, "length"], rows["Q", False, "length"]
    batch = data.batch
    assert bool(batch.trained[cut_root].any()) == (truncated == "penalize")
    assert not batch.trained[cut_branch].any()
    # Rewards of Q's roots are 0 and 2: their mean, without the branch, is 1.
    assert batch.advantages is not None
    first = batch.advantages[(batch.group == 1) & ~batch.is_branch, 1]
    assert first.tolist() == [-1.0, 1.0]
    if truncated == "mask":
        assert all(point.trajectory is not data.trajectories[cut_root] for point in data.points)


@dataclass(frozen=True)
class Comparing(Later):
    """Asks for the policy that sampled."""

    compares_policies: ClassVar[bool] = True


class Improving:
    """A policy whose log-probs are told by the tokens, and fall by one each time that it is updated."""

    def __init__(self) -> None:
        self.version = 0

    def __call__(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        rows = (~batch.is_evaluated).nonzero()[:, 0]
        log_probs = first_log_probs(batch.token_ids) - self.version
        values = log_probs.where(batch.response_mask, 0.0)[rows]
        return batch.evaluated(rows, values, torch.zeros_like(values), self.version)


def first_log_probs(token_ids: torch.Tensor) -> torch.Tensor:
    """Those before the first update."""
    return -(token_ids % 5).float()


def _scored(runner_of_iterations: IterationRunner, policy: Improving, prompts: Sequence) -> list[TrajectoryBatch]:
    """The batches of an iteration, between which the policy is updated."""
    batches = []
    for batch in runner_of_iterations.run(0, prompts):
        batches.append(batch)
        policy.version += 1
    return batches


@pytest.mark.parametrize("scorer", [Comparing(), Later()])
def test_the_policy_that_sampled_is_asked_before_it_is_updated(tokenizer, runner, scorer):
    policy = Improving()
    engine = Answering(tokenizer, {"P": f"bbb{EOS}", "Q": f"bb{EOS}"})
    branching = make_branching(1, 1, when="minibatch", train_on="roots")
    collector = make_collector(engine, runner, branching, scorer=scorer, policy=Policy(policy))
    iterations = IterationRunner(collector, lambda: None, num_minibatches=2)
    _scored(iterations, policy, make_prompts(tokenizer, "PQ"))
    first, second = (part.batch for part in iterations.collected)
    # The first is scored by the policy that sampled it: there is nothing to compare.
    assert first.sampling_log_probs is None
    if not scorer.compares_policies:
        assert second.sampling_log_probs is None
        return
    is_of_root = second.response_mask & ~second.is_branch[second.owners]
    # What a branch shares with a root was sampled when that was.
    assert is_of_root[second.is_branch].any()
    assert torch.equal(second.sampling_log_probs[is_of_root], first_log_probs(second.token_ids)[is_of_root])
    # They have fallen by 1 since, whatever the engine says.
    mask = second.response_mask & ~second.is_branch.unsqueeze(-1)
    assert ((second.old_log_probs - second.sampling_log_probs)[mask] == -1.0).all()


@pytest.mark.parametrize("when", ["iteration", "minibatch"])
def test_roots_that_are_sampled_ahead_take_their_log_probs_along(tokenizer, runner, when):
    policy = Improving()
    engine = Answering(tokenizer, {"P": f"bbb{EOS}", "Q": f"bb{EOS}", "R": f"b{EOS}", "S": f"b{EOS}"})
    branching = make_branching(1, 1, when=when, train_on="roots")
    collector = make_collector(engine, runner, branching, scorer=Comparing(), policy=Policy(policy))
    iterations = IterationRunner(collector, lambda: None, num_minibatches=2, lag=1)
    p, q, r, s = make_prompts(tokenizer, "PQRS")
    for _ in iterations.run(0, [p, q], [r, s]):
        policy.version += 1
    for number, root in enumerate(iterations.pending):
        assert root.sampling_log_probs is not None
        # With mini-batches, the second is sampled by the policy that the first has updated.
        expected = first_log_probs(root.token_ids) - (number if when == "minibatch" else 0)
        assert torch.equal(root.sampling_log_probs[root.response_mask], expected[root.response_mask])

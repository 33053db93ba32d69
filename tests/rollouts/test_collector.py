"""The pipeline from trajectories to training rows: how often the engine is asked, who is a parent, who is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from appo.advantages import EntropyAwareAdvantage, GroupAdvantage, ProceduralAdvantage
from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Prompt
from appo.monitoring.rollout_metrics import rollout_metrics
from appo.rollouts import (
    IterationRunner,
    Policy,
    RolloutRequest,
)
from appo.rollouts.data import mini_batches
from appo.rollouts.tree import Tree
from appo.scorers import TreeUniform
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.collecting import (
    SCRIPT,
    Later,
    collect,
    evaluate_half_below,
    make_branching,
    make_collector,
    make_prompts,
)
from tests.rollouts.conftest import ScriptedEngine


def _twin(prompt: Prompt) -> Prompt:
    """The same question under another id."""
    return Prompt(f"{prompt.id} twin", prompt.question, prompt.token_ids, prompt.answers)


def test_branches_leave_the_best_position_and_share_everything_up_to_it(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = make_collector(engine, runner, make_branching(1, 1, train_on="roots"))
    roots = collector.sample_roots(make_prompts(tokenizer, "PQ"), iteration=0)
    data = collector.collect(Tree.of_roots(roots), iteration=0)
    # The end token at 6 is no candidate, so "c" at 5 is the best of P, and "b" at 3 that of Q.
    assert [(p.trajectory is t, p.position) for p, t in zip(data.points, roots, strict=True)] == [
        (True, 5),
        (True, 3),
    ]
    assert [tokenizer.decode(request.token_ids) for request in engine.requests] == ["P", "Q", "Paab c", "Qbbb"]
    assert [t.text for t in data.trajectories] == ["aab c", "bbb", "aab ca", "bbbba"]
    assert data.batch.parent.tolist() == [-1, -1, 0, 1]
    assert data.batch.branch_position.tolist() == [-1, -1, 5, 3]
    assert data.batch.rewards.tolist() == [2.0, 0.0, 3.0, 1.0]
    assert data.batch.trained.any(-1).tolist() == [True, True, False, False]


def test_a_resampled_split_sends_the_prefix_without_the_chosen_token(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {"P": f"aab{EOS}", "Paa": f"a{EOS}"})
    collector = make_collector(engine, runner, make_branching(1, 1, split="resample"))
    collect(collector, make_prompts(tokenizer, "P"))
    assert tokenizer.decode(engine.requests[-1].token_ids) == "Paa"


def test_a_branch_at_a_turn_leaves_before_it_whatever_stands_there(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {"P": f" a{EOS}"})
    collector = make_collector(engine, runner, make_branching(1, 1), scorer=TreeUniform())
    data = collect(collector, make_prompts(tokenizer, "P"))
    # The only turn begins with white space at 1; the branch shares the prompt alone.
    assert [tokenizer.decode(request.token_ids) for request in engine.requests] == ["P", "P"]
    assert data.batch.branch_position.tolist() == [-1, 0]


@pytest.mark.parametrize("allowed", [True, False])
def test_branches_alone_are_kept_from_calling_tools(tokenizer, runner, allowed):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = make_collector(engine, runner, make_branching(1, 1, tool_calls=allowed))
    seen: list[RolloutRequest] = []
    begin = collector.agent.begin
    collector.agent.begin = lambda requests, sampling: seen.extend(requests) or begin(requests, sampling)
    collect(collector, make_prompts(tokenizer, "P"))
    assert [request.may_call_tools for request in seen] == [True, allowed]


def test_white_space_the_end_and_positions_without_room_are_no_branch_points(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {**SCRIPT, "Paa": EOS, "Pa": EOS})
    branching = make_branching(1, 9, min_remaining=0.6)
    collector = make_collector(engine, runner, branching)
    data = collect(collector, make_prompts(tokenizer, "P"))
    # 8 response tokens behind position 0: a branch at position p has 8 - p left, so 3 is the last with 60 %.
    assert [point.position for point in data.points] == [3, 2, 1]
    assert data.num_wanted == 9


def test_the_shortage_of_branches_is_counted_and_trains_all_the_same(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {"P": EOS})
    collector = make_collector(engine, runner, make_branching(2, 2))
    data = collect(collector, make_prompts(tokenizer, "P"))
    assert (data.num_wanted, len(data.trajectories), len(data.by_prompt()[0].batch())) == (2, 2, 2)


class Evaluating:
    """Remembers the rows that it evaluates, by their text."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.texts: list[str] = []

    def __call__(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        for row in (~batch.is_evaluated).nonzero()[:, 0].tolist():
            response = batch.token_ids[row, batch.prompt_lengths[row] : batch.lengths[row]]
            self.texts.append(self.tokenizer.decode(response, skip_special_tokens=True))
        return evaluate_half_below(batch)


@dataclass(frozen=True)
class FromAnywhere(Later):
    """The same without a look at log-probs."""

    reads_log_probs: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("scorer", "advantage", "options", "evaluated"),
    [
        # Two prompts with a branch each: nothing is evaluated but what someone reads.
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 1}, []),
        # The second mini-batch meets a policy that the first has changed.
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 2}, ["bbb", "bbbba"]),
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 2, "when": "minibatch"}, []),
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 2, "needs_old_log_probs": False}, []),
        (
            FromAnywhere(), GroupAdvantage(), {"num_minibatches": 1, "update_epochs": 2},
            ["aab c", "aab ca", "bbb", "bbbba"],
        ),
        # What was evaluated for the scorer is not evaluated again, and branches that are not trained never are.
        (Later(), GroupAdvantage(), {"num_minibatches": 2}, ["aab c", "bbb", "bbbba"]),
        (Later(), ProceduralAdvantage(), {"num_minibatches": 2, "train_on": "roots"}, ["aab c", "bbb"]),
        (FromAnywhere(), EntropyAwareAdvantage(), {"num_minibatches": 1}, ["aab c", "bbb", "aab ca", "bbbba"]),
    ],
)  # fmt: skip
def test_nothing_is_evaluated_that_is_not_read_or_that_the_training_step_evaluates_itself(
    tokenizer, runner, scorer, advantage, options, evaluated
):
    evaluating = Evaluating(tokenizer)
    engine = ScriptedEngine(tokenizer, SCRIPT)
    chosen = {name: options[name] for name in ("when", "train_on") if name in options}
    options = {name: value for name, value in options.items() if name not in chosen}
    branching = make_branching(1, 1, **chosen)
    collector = make_collector(engine, runner, branching, scorer=scorer, advantage=advantage, policy=Policy(evaluating))
    iterations = IterationRunner(collector, lambda: None, **options)
    list(iterations.run(0, make_prompts(tokenizer, "PQ")))
    assert evaluating.texts == evaluated


def test_only_the_first_mini_batch_goes_without_old_log_probs(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = make_collector(engine, runner, make_branching(1, 1), scorer=FromAnywhere(), advantage=GroupAdvantage())
    first, second = IterationRunner(collector, lambda: None, num_minibatches=2).run(0, make_prompts(tokenizer, "PQ"))
    assert not first.is_evaluated.any()
    assert second.is_evaluated.all()
    gap: Tensor = (second.old_log_probs - second.behavior_log_probs)[second.response_mask]
    assert gap.tolist() == pytest.approx([-0.5] * int(second.response_mask.sum()))


def test_what_was_evaluated_of_roots_is_logged(tokenizer, runner):
    for scorer in (Later(), FromAnywhere()):
        engine = ScriptedEngine(tokenizer, SCRIPT)
        collector = make_collector(engine, runner, make_branching(2, 1), scorer=scorer, advantage=GroupAdvantage())
        iterations = IterationRunner(collector, lambda: None, num_minibatches=1)
        (batch,) = iterations.run(0, make_prompts(tokenizer, "PQ"))
        # Branches are trained as well, and nobody has read their log-probs.
        assert batch.is_evaluated.tolist() == [scorer.reads_log_probs, scorer.reads_log_probs, False] * 2
        metrics = rollout_metrics(iterations.collected)
        for name in ("entropy", "mismatch_mean"):
            assert (name in metrics) == scorer.reads_log_probs
        # The policy is the one that sampled: what differs is the engine.
        if scorer.reads_log_probs:
            assert metrics["log_ratio_mean"] == metrics["log_ratio_std"] == 0.0
            assert metrics["mismatch_mean"] == pytest.approx(0.5)
            assert metrics["roots_changed_share"] == 0.0


def test_a_mini_batch_keeps_what_is_evaluated_of_it_in_the_data(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = make_collector(engine, runner, make_branching(1, 1), scorer=FromAnywhere(), advantage=GroupAdvantage())
    data = collect(collector, make_prompts(tokenizer, "PQ"))
    first, second = data.by_prompt()
    second.evaluate(evaluate_half_below)
    assert (first.is_evaluated, second.is_evaluated) == (False, True)
    assert data.batch.is_evaluated.tolist() == [False, True, False, True]
    gap = (data.batch.old_log_probs - data.batch.behavior_log_probs)[data.batch.is_evaluated]
    mask = data.batch.response_mask[data.batch.is_evaluated]
    assert gap[mask].tolist() == pytest.approx([-0.5] * int(mask.sum()))
    assert not gap[~mask].any()


def test_mini_batches_keep_the_rows_of_a_prompt_together(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = make_collector(engine, runner, make_branching(2, 0))
    data = collect(collector, make_prompts(tokenizer, "PQ"))
    first, second = (batch.batch() for batch in mini_batches(data.by_prompt(), 2))
    assert first.token_ids[:, 0].unique().tolist() != second.token_ids[:, 0].unique().tolist()
    assert [batch.token_ids.shape for batch in (first, second)] == [(2, 7), (2, 5)]


@pytest.mark.parametrize(("when", "synced_at", "drawn_at"), [("iteration", [0], [4, 4]), ("minibatch", [0, 3], [3, 4])])
def test_the_moment_of_branching_decides_when_the_engine_is_asked(tokenizer, runner, when, synced_at, drawn_at):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    syncs: list[int] = []
    iterations = IterationRunner(
        make_collector(engine, runner, make_branching(1, 1, when=when)),
        lambda: syncs.append(len(engine.requests)),
        num_minibatches=2,
    )
    # Two initial trajectories, then a branch each; a mini-batch is a prompt.
    assert [len(engine.requests) for _ in iterations.run(0, make_prompts(tokenizer, "PQ"))] == drawn_at
    assert syncs == synced_at


@pytest.mark.parametrize("when", ["iteration", "minibatch"])
def test_with_a_lag_the_next_iteration_is_sampled_along_with_the_branches(tokenizer, runner, when):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    iterations = IterationRunner(
        make_collector(engine, runner, make_branching(1, 1, when=when)), lambda: None, 2, lag=1
    )
    p, q = make_prompts(tokenizer, "PQ")
    assert len(list(iterations.run(0, [p, _twin(p)], [q, _twin(q)]))) == 2
    assert [t.prompt.id for t in iterations.pending] == ["Q", "Q twin"]
    seen = len(engine.requests)
    list(iterations.run(1, [q, _twin(q)], []))
    # Nothing is sampled for the second iteration but its branches.
    assert [tokenizer.decode(r.token_ids) for r in engine.requests[seen:]] == ["Qbbb", "Qbbb"]
    assert iterations.pending == []


def _varied(tokenizer) -> tuple[ScriptedEngine, list[Prompt]]:
    """Prompts A, B, C whose two answers are equal, and X, Y, Z whose answers differ in reward."""
    flat, differing = "ABC", "XYZ"
    script = {name: [f"b{EOS}"] for name in flat} | {name: [f"aa{EOS}", f"b{EOS}"] for name in differing}
    return ScriptedEngine(tokenizer, script), make_prompts(tokenizer, flat + differing)


def test_prompts_without_a_gradient_are_replaced_in_their_place(tokenizer, runner):
    engine, (a, b, c, x, y, z) = _varied(tokenizer)
    iterations = IterationRunner(
        make_collector(engine, runner, make_branching(2, 0)), lambda: None, 3, replacement_rounds=2
    )
    batches = list(iterations.run(0, [a, x, b], replacements=[c, y, z]))
    # A and B have no gradient. C and Y are tried first: Y takes the place of A; then Z that of B.
    firsts = [tokenizer.decode(batch.token_ids[:, 0].unique()) for batch in batches]
    assert firsts == ["Y", "X", "Z"]
    assert iterations.num_replaced == 2
    assert [t.prompt.id for part in iterations.collected for t in part.trajectories[::2]] == [
        "A",
        "X",
        "B",
        "C",
        "Y",
        "Z",
    ]
    assert all(batch.num_tokens is None and batch.advantages.any() for batch in batches)


def test_prompts_stay_when_the_rounds_or_the_others_are_used_up(tokenizer, runner):
    for rounds, others in ((1, "CXYZ"), (9, "C")):
        engine, _ = _varied(tokenizer)
        iterations = IterationRunner(
            make_collector(engine, runner, make_branching(2, 0)), lambda: None, 1, replacement_rounds=rounds
        )
        (batch,) = iterations.run(0, make_prompts(tokenizer, "A"), replacements=make_prompts(tokenizer, others))
        assert tokenizer.decode(batch.token_ids[:, 0].unique()) == "A"
        assert iterations.num_replaced == 0


def test_nothing_is_replaced_unless_asked_for(tokenizer, runner):
    engine, (a, b, c, x, *_) = _varied(tokenizer)
    iterations = IterationRunner(make_collector(engine, runner, make_branching(2, 0)), lambda: None, 1)
    list(iterations.run(0, [a, b], replacements=[c, x]))
    assert len(engine.requests) == 4


def test_update_epochs_repeat_the_batches_without_sampling(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    iterations = IterationRunner(make_collector(engine, runner, make_branching(1, 1)), lambda: None, 2, update_epochs=3)
    batches = list(iterations.run(0, make_prompts(tokenizer, "PQ")))
    assert len(batches) == 6
    assert torch.equal(batches[0].token_ids, batches[2].token_ids)
    assert torch.equal(batches[0].old_log_probs, batches[2].old_log_probs)
    assert len(engine.requests) == 4


@pytest.mark.parametrize(
    ("num_branches", "events"),
    [
        # A root's log-probs choose its branch as soon as it is there, while the other one is sampled.
        (1, ["evaluate 1", "evaluate 1", "sleep at 4", "reference 4"]),
        # Without branches nobody reads log-probs.
        (0, ["sleep at 2", "reference 2"]),
    ],
)
def test_the_engine_sleeps_as_soon_as_all_is_sampled(tokenizer, runner, num_branches, events):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    seen: list[str] = []
    engine.sleep = lambda weights_follow: seen.append(f"sleep at {len(engine.requests)}")

    def evaluate(batch: TrajectoryBatch) -> TrajectoryBatch:
        seen.append(f"evaluate {len(batch)}")
        return evaluate_half_below(batch)

    def reference_log_probs(batch: TrajectoryBatch) -> Tensor:
        seen.append(f"reference {len(batch)}")
        return batch.behavior_log_probs - 1.0

    collector = make_collector(
        engine, runner, make_branching(1, num_branches), policy=Policy(evaluate, reference_log_probs),
        advantage=GroupAdvantage(),
    )  # fmt: skip
    (batch,) = IterationRunner(collector, lambda: None, num_minibatches=1).run(0, make_prompts(tokenizer, "PQ"))
    assert seen == events
    assert torch.equal(batch.ref_log_probs, batch.behavior_log_probs - 1.0)


class DroppingScript(ScriptedEngine):
    """Has no weights from a sleep that an update follows until that."""

    has_weights = True

    def submit(self, request):
        assert self.has_weights
        super().submit(request)

    def sleep(self, weights_follow: bool = False) -> None:
        assert weights_follow
        self.has_weights = False


@pytest.mark.parametrize("in_lockstep", [False, True])
@pytest.mark.parametrize("when", ["iteration", "minibatch"])
@pytest.mark.parametrize("num_branches", [0, 1])
@pytest.mark.parametrize("lag", [0, 1])
def test_an_engine_that_has_dropped_its_weights_is_not_asked_before_it_has_them_again(
    tokenizer, runner, in_lockstep, when, num_branches, lag
):
    engine = DroppingScript(tokenizer, SCRIPT)
    collector = make_collector(
        engine, runner, make_branching(1, num_branches, when=when), in_lockstep=in_lockstep, weights_follow=True
    )
    iterations = IterationRunner(collector, lambda: setattr(engine, "has_weights", True), 2, lag=lag)
    prompts = make_prompts(tokenizer, "PQ")
    for number in range(3):
        following = prompts if lag and number < 2 else ()
        assert len(list(iterations.run(number, prompts, following))) == 2
        assert not engine.has_weights


def test_the_reference_is_asked_once_for_all_passes_over_a_mini_batch(tokenizer, runner):
    asked: list[int] = []

    def reference_log_probs(batch: TrajectoryBatch) -> Tensor:
        asked.append(len(batch))
        return batch.behavior_log_probs - len(asked)

    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = make_collector(
        engine, runner, make_branching(1, 1, train_on="roots"), policy=Policy(evaluate_half_below, reference_log_probs)
    )
    iterations = IterationRunner(collector, lambda: None, num_minibatches=2, update_epochs=2)
    batches = list(iterations.run(0, make_prompts(tokenizer, "PQ")))
    assert asked == [1, 1]
    for first, again in zip(batches[:2], batches[2:], strict=True):
        assert torch.equal(first.ref_log_probs, again.ref_log_probs)

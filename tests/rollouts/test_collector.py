"""The pipeline from trajectories to training rows: how often the engine is asked, who is a parent, who is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from appo.advantages import EntropyAwareAdvantage, GroupAdvantage, ProceduralAdvantage
from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Prompt, RewardResult, Trajectory
from appo.engines import SamplingParams
from appo.monitoring.rollout_metrics import rollout_metrics
from appo.rewards import Reward, RewardRunner
from appo.rollouts import (
    AgentLimits,
    AgentLoop,
    BranchRules,
    Collector,
    IterationRunner,
    Measured,
    Rollouts,
    Start,
    Stopwatch,
)
from appo.rollouts.branching import CandidateFilter
from appo.rollouts.data import mini_batches
from appo.scorers import Scorer, Scores, TreeUniform
from appo.tools import TagSyntax, ToolRunner
from tests.rollouts.conftest import EOS, ScriptedEngine


@dataclass(frozen=True)
class Later(Scorer):
    """Prefers later positions."""

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> Scores:
        positions = torch.arange(batch.token_ids.shape[1], dtype=torch.float32).expand(batch.token_ids.shape)
        return Scores(positions.masked_fill(~batch.response_mask, float("-inf")))


@dataclass(frozen=True)
class CountLetters(Reward):
    """The number of letters "a" in a response."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return RewardResult(float(trajectory.text.count("a")), {"accuracy": 0.0})


def _measure(trajectories: Sequence[Trajectory]) -> Measured:
    """Log-probs that are 0.5 below those of the behavior policy, entropies that are the position."""
    return Measured(
        [(t.behavior_log_probs - 0.5) * t.response_mask for t in trajectories],
        [torch.arange(len(t)) * t.response_mask for t in trajectories],
        policy_version=0,
    )


@pytest.fixture
def runner() -> Iterator[ToolRunner]:
    runner = ToolRunner([])
    runner.start()
    yield runner
    runner.stop()


def _prompts(tokenizer, names: Sequence[str]) -> list[Prompt]:
    return [Prompt(name, name, tuple(tokenizer.encode(name, add_special_tokens=False)), ("",)) for name in names]


def _collector(engine: ScriptedEngine, runner: ToolRunner, rules: BranchRules, **changes) -> Collector:
    limits = AgentLimits(max_response_tokens=8, max_tool_calls=0, max_result_tokens=1)
    options = {
        "agent": AgentLoop(engine, engine.tokenizer, runner, TagSyntax(), limits),
        "measure": _measure,
        "measure_reference": None,
        "scorer": Later(),
        "advantage": ProceduralAdvantage(),
        "reward": RewardRunner(CountLetters()),
        "rules": rules,
        "candidates": CandidateFilter(engine.tokenizer),
        "sampling": SamplingParams(),
        "seed": 0,
        "stopwatch": Stopwatch(),
    }
    return Collector(**{**options, **changes})


def _twin(prompt: Prompt) -> Prompt:
    """The same question under another id."""
    return Prompt(f"{prompt.id} twin", prompt.question, prompt.token_ids, prompt.answers)


# Prompt "P" is answered "aab c" every time; its best candidate under the rules below decides what a branch is sent.
SCRIPT = {"P": f"aab c{EOS}", "Q": f"bbb{EOS}", "Paab c": f"a{EOS}", "Paab": f"xa{EOS}", "Qbbb": f"ba{EOS}", "Qbb": EOS}


def test_branches_leave_the_best_position_and_share_everything_up_to_it(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = _collector(engine, runner, BranchRules(num_initial=1, num_branches=1))
    initial = collector.sample_initial(_prompts(tokenizer, "PQ"), iteration=0)
    rollouts = collector.collect(initial, iteration=0)
    # The end token at 6 is no candidate, so "c" at 5 is the best of P, and "b" at 3 that of Q.
    assert [(p.trajectory is t, p.position) for p, t in zip(rollouts.plan.points, initial, strict=True)] == [
        (True, 5),
        (True, 3),
    ]
    assert [tokenizer.decode(request.token_ids) for request in engine.requests] == ["P", "Q", "Paab c", "Qbbb"]
    assert [t.text for t in rollouts.trajectories] == ["aab c", "bbb", "aab ca", "bbbba"]
    assert rollouts.batch.parent.tolist() == [-1, -1, 0, 1]
    assert rollouts.batch.branch_position.tolist() == [-1, -1, 5, 3]
    assert rollouts.batch.rewards.tolist() == [2.0, 0.0, 3.0, 1.0]
    assert rollouts.trained_rows.tolist() == [0, 1]
    assert len(rollouts.train) == 2


def test_a_resampled_split_sends_the_prefix_without_the_chosen_token(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {"P": f"aab{EOS}", "Paa": f"a{EOS}"})
    collector = _collector(engine, runner, BranchRules(num_initial=1, num_branches=1, split="resample"))
    collector.collect(collector.sample_initial(_prompts(tokenizer, "P"), iteration=0), iteration=0)
    assert tokenizer.decode(engine.requests[-1].token_ids) == "Paa"


def test_a_branch_at_a_turn_leaves_before_it_whatever_stands_there(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {"P": f" a{EOS}"})
    collector = _collector(engine, runner, BranchRules(num_initial=1, num_branches=1), scorer=TreeUniform())
    rollouts = collector.collect(collector.sample_initial(_prompts(tokenizer, "P"), iteration=0), iteration=0)
    # The only turn begins with white space at 1; the branch shares the prompt alone.
    assert [tokenizer.decode(request.token_ids) for request in engine.requests] == ["P", "P"]
    assert rollouts.batch.branch_position.tolist() == [-1, 0]


@pytest.mark.parametrize("allowed", [True, False])
def test_branches_alone_are_kept_from_calling_tools(tokenizer, runner, allowed):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = _collector(engine, runner, BranchRules(1, 1, branch_tool_calls=allowed))
    seen: list[Start] = []
    run = collector.agent.run
    collector.agent.run = lambda starts, sampling: seen.extend(starts) or run(starts, sampling)
    collector.collect(collector.sample_initial(_prompts(tokenizer, "P"), iteration=0), iteration=0)
    assert [start.may_call_tools for start in seen] == [True, allowed]


def test_white_space_the_end_and_positions_without_room_are_no_branch_points(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    rules = BranchRules(num_initial=1, num_branches=9, min_remaining_tokens=5)
    collector = _collector(engine, runner, rules)
    plan = collector.plan_branches(collector.sample_initial(_prompts(tokenizer, "P"), iteration=0), iteration=0)
    # 8 response tokens behind position 0: a branch at position p has 8 - p left, so 3 is the last with 5.
    assert [point.position for point in plan.points] == [3, 2, 1]
    assert plan.num_wanted == 9


def test_the_shortage_of_branches_is_counted_and_trains_all_the_same(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, {"P": EOS})
    collector = _collector(engine, runner, BranchRules(num_initial=2, num_branches=2))
    rollouts = collector.collect(collector.sample_initial(_prompts(tokenizer, "P"), iteration=0), iteration=0)
    assert (rollouts.plan.num_wanted, len(rollouts.trajectories), len(rollouts.train)) == (2, 2, 2)


class Measuring:
    """Counts the trajectories it measures."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, trajectories: Sequence[Trajectory]) -> Measured:
        self.texts += [trajectory.text for trajectory in trajectories]
        return _measure(trajectories)


@dataclass(frozen=True)
class FromAnywhere(Later):
    """The same without a look at what is measured."""

    reads_measurements: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("scorer", "advantage", "options", "measured"),
    [
        # Two prompts with a branch each: nothing is measured but what someone reads.
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 1}, []),
        # The second mini-batch meets a policy that the first has changed.
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 2}, ["bbb", "bbbba"]),
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 2, "branch_when": "minibatch"}, []),
        (FromAnywhere(), GroupAdvantage(), {"num_minibatches": 2, "needs_old_log_probs": False}, []),
        (
            FromAnywhere(), GroupAdvantage(), {"num_minibatches": 1, "update_epochs": 2},
            ["aab c", "aab ca", "bbb", "bbbba"],
        ),
        # What was measured for the scorer is not measured again, and branches that are not trained never are.
        (Later(), GroupAdvantage(), {"num_minibatches": 2}, ["aab c", "bbb", "bbbba"]),
        (Later(), ProceduralAdvantage(), {"num_minibatches": 2}, ["aab c", "bbb"]),
        (FromAnywhere(), EntropyAwareAdvantage(), {"num_minibatches": 1}, ["aab c", "bbb", "aab ca", "bbbba"]),
    ],
)  # fmt: skip
def test_nothing_is_measured_that_is_not_read_or_that_the_training_step_will_tell(
    tokenizer, runner, scorer, advantage, options, measured
):
    measuring = Measuring()
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = _collector(engine, runner, BranchRules(1, 1), scorer=scorer, advantage=advantage, measure=measuring)
    iterations = IterationRunner(collector, lambda: None, **options)
    list(iterations.run(0, _prompts(tokenizer, "PQ")))
    assert measuring.texts == measured


def test_only_the_first_mini_batch_goes_without_old_log_probs(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = _collector(engine, runner, BranchRules(1, 1), scorer=FromAnywhere(), advantage=GroupAdvantage())
    first, second = IterationRunner(collector, lambda: None, num_minibatches=2).run(0, _prompts(tokenizer, "PQ"))
    assert first.old_log_probs is None
    gap: Tensor = (second.old_log_probs - second.behavior_log_probs)[second.response_mask]
    assert gap.tolist() == pytest.approx([-0.5] * int(second.response_mask.sum()))


def test_what_the_training_step_tells_is_logged_like_what_is_measured(tokenizer, runner):
    metrics = []
    for scorer in (Later(), FromAnywhere()):
        engine = ScriptedEngine(tokenizer, SCRIPT)
        collector = _collector(engine, runner, BranchRules(2, 1), scorer=scorer, advantage=GroupAdvantage())
        iterations = IterationRunner(collector, lambda: None, num_minibatches=1)
        (batch,) = iterations.run(0, _prompts(tokenizer, "PQ"))
        (rollouts,) = iterations.rounds
        # Branches are trained as well, so neither batch has all of its old log-probs.
        assert batch.old_log_probs is None
        for name in ("log_ratio_mean", "entropy", "mismatch_mean"):
            assert (name in rollout_metrics(iterations.rounds)) == scorer.reads_measurements
        iterations.note(_measure([t for prompt in rollouts.by_prompt() for t in _of(rollouts, prompt.rows)]))
        metrics.append(rollout_metrics(iterations.rounds))
        mask = rollouts.batch.response_mask[:4]
        gap = (rollouts.batch.old_log_probs - rollouts.batch.behavior_log_probs)[:4][mask]
        assert gap.tolist() == pytest.approx([-0.5] * int(mask.sum()))
    assert metrics[0] == metrics[1]
    assert -metrics[0]["log_ratio_mean"] == metrics[0]["mismatch_mean"] == pytest.approx(0.5)


def _of(rollouts: Rollouts, rows: Tensor) -> list[Trajectory]:
    return [rollouts.trajectories[rollouts.trained_rows[row]] for row in rows.tolist()]


def test_mini_batches_keep_the_rows_of_a_prompt_together(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    collector = _collector(engine, runner, BranchRules(2, 0))
    rollouts = collector.collect(collector.sample_initial(_prompts(tokenizer, "PQ"), iteration=0), iteration=0)
    first, second = (batch.train_batch() for batch in mini_batches(rollouts.by_prompt(), 2))
    assert first.token_ids[:, 0].unique().tolist() != second.token_ids[:, 0].unique().tolist()
    assert [batch.token_ids.shape for batch in (first, second)] == [(2, 7), (2, 5)]


@pytest.mark.parametrize(
    ("branch_when", "synced_at", "drawn_at"), [("iteration", [0, 2], [4, 4]), ("minibatch", [0, 2, 3], [3, 4])]
)
def test_the_moment_of_branching_decides_when_the_engine_is_asked(tokenizer, runner, branch_when, synced_at, drawn_at):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    syncs: list[int] = []
    iterations = IterationRunner(
        _collector(engine, runner, BranchRules(1, 1)),
        lambda: syncs.append(len(engine.requests)),
        num_minibatches=2,
        branch_when=branch_when,
    )
    # Two initial trajectories, then a branch each; a mini-batch is a prompt.
    assert [len(engine.requests) for _ in iterations.run(0, _prompts(tokenizer, "PQ"))] == drawn_at
    assert syncs == synced_at


@pytest.mark.parametrize("branch_when", ["iteration", "minibatch"])
def test_with_a_lag_the_next_iteration_is_sampled_along_with_the_branches(tokenizer, runner, branch_when):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    iterations = IterationRunner(
        _collector(engine, runner, BranchRules(1, 1)), lambda: None, 2, branch_when=branch_when, lag=1
    )
    p, q = _prompts(tokenizer, "PQ")
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
    return ScriptedEngine(tokenizer, script), _prompts(tokenizer, flat + differing)


def test_prompts_that_train_nothing_are_replaced_in_their_place(tokenizer, runner):
    engine, (a, b, c, x, y, z) = _varied(tokenizer)
    iterations = IterationRunner(_collector(engine, runner, BranchRules(2, 0)), lambda: None, 3, replacement_rounds=2)
    batches = list(iterations.run(0, [a, x, b], spare=[c, y, z]))
    # A and B train nothing. C and Y are tried first: Y takes the place of A; then Z that of B.
    firsts = [tokenizer.decode(batch.token_ids[:, 0].unique()) for batch in batches]
    assert firsts == ["Y", "X", "Z"]
    assert iterations.num_replaced == 2
    assert [t.prompt.id for part in iterations.rounds for t in part.trajectories[::2]] == ["A", "X", "B", "C", "Y", "Z"]
    assert all(batch.num_tokens is None and batch.advantages.any() for batch in batches)


def test_prompts_stay_when_the_rounds_or_the_others_are_used_up(tokenizer, runner):
    for rounds, spare in ((1, "CXYZ"), (9, "C")):
        engine, _ = _varied(tokenizer)
        iterations = IterationRunner(
            _collector(engine, runner, BranchRules(2, 0)), lambda: None, 1, replacement_rounds=rounds
        )
        (batch,) = iterations.run(0, _prompts(tokenizer, "A"), spare=_prompts(tokenizer, spare))
        assert tokenizer.decode(batch.token_ids[:, 0].unique()) == "A"
        assert iterations.num_replaced == 0


def test_nothing_is_replaced_unless_asked_for(tokenizer, runner):
    engine, (a, b, c, x, *_) = _varied(tokenizer)
    iterations = IterationRunner(_collector(engine, runner, BranchRules(2, 0)), lambda: None, 1)
    list(iterations.run(0, [a, b], spare=[c, x]))
    assert len(engine.requests) == 4


def test_update_epochs_repeat_the_batches_without_sampling(tokenizer, runner):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    iterations = IterationRunner(_collector(engine, runner, BranchRules(1, 1)), lambda: None, 2, update_epochs=3)
    batches = list(iterations.run(0, _prompts(tokenizer, "PQ")))
    assert len(batches) == 6
    assert torch.equal(batches[0].token_ids, batches[2].token_ids)
    assert torch.equal(batches[0].old_log_probs, batches[2].old_log_probs)
    assert len(engine.requests) == 4


@pytest.mark.parametrize(
    ("num_branches", "events"),
    [
        # Two initial trajectories; what is measured of them chooses branches, for which their prefixes stay cached.
        (1, ["measure 2", "sleep at 4", "measure 4"]),
        # Without branches nothing will be sampled before the update.
        (0, ["sleep at 2", "measure 2", "sleep at 2", "measure 2"]),
    ],
)
def test_the_engine_sleeps_as_soon_as_all_is_sampled(tokenizer, runner, num_branches, events):
    engine = ScriptedEngine(tokenizer, SCRIPT)
    seen: list[str] = []
    engine.sleep = lambda: seen.append(f"sleep at {len(engine.requests)}")

    def measure(trajectories: Sequence[Trajectory]) -> Measured:
        seen.append(f"measure {len(trajectories)}")
        return _measure(trajectories)

    collector = _collector(
        engine, runner, BranchRules(1, num_branches), measure=measure, measure_reference=measure,
        advantage=GroupAdvantage(),
    )  # fmt: skip
    collector.collect(collector.sample_initial(_prompts(tokenizer, "PQ"), iteration=0), iteration=0)
    assert seen == events

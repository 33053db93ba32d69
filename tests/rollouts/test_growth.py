"""Trees that grow each at its own pace: the same ones as in lockstep, in one run of the engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from appo.advantages import DualGroupAdvantage
from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Prompt, RewardResult, Trajectory
from appo.distributed import comm
from appo.engines import HFEngine, SamplingParams
from appo.policy.evaluation import evaluate_batch
from appo.policy.loading import load_policy
from appo.policy.log_probs import PolicyLogProbs
from appo.rewards import Reward, RewardError, RewardRunner
from appo.rollouts import (
    AgentLoop,
    Branching,
    CandidateFilter,
    Collector,
    IterationData,
    IterationRunner,
    Limits,
    PhaseTimer,
    Policy,
    growth,
)
from appo.rollouts.budgets import branch_budgets, least_budgets
from appo.scorers import BranchingScore, RandomPosition, Scorer
from appo.tools import TagSyntax, ToolRunner
from tests.distributed.processes import as_processes
from tests.engines.tiny_policy import make_model, make_tokenizer
from tests.rollouts.byte_tokenizer import EOS
from tests.rollouts.collecting import CountLetters, collect, make_branching, make_collector, make_prompts
from tests.rollouts.conftest import ScriptedEngine


@dataclass(frozen=True)
class LengthsBetween(Reward):
    """1 for responses of 6 tokens to 24: of some prompts all roots are alike."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return RewardResult(float(6 <= int(trajectory.response_mask.sum()) <= 24), {"accuracy": 0.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy that ends its responses at any time."""
    folder, tokenizer = tmp_path_factory.mktemp("policy"), make_tokenizer()
    model = make_model("llama", len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 3.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _grown(
    folder: Path, scorer: Scorer, branching: Branching, in_lockstep: bool, numbers: Sequence[int] = range(6)
) -> tuple[IterationData, list[bool]]:
    """What an iteration collects, and of each request whether a root was still in flight."""
    tokenizer, engine, runner = make_tokenizer(), HFEngine(max_batch_size=8), ToolRunner([])
    runner.start()
    engine.start(str(folder))
    evaluator = PolicyLogProbs(load_policy(str(folder), "float32"))

    def evaluate(batch: TrajectoryBatch) -> TrajectoryBatch:
        missing = (~batch.is_evaluated).nonzero()[:, 0]
        rows = batch.select(missing) if len(missing) else None
        values = evaluate_batch(evaluator, rows, 512, torch.device("cpu"), torch.no_grad)
        return batch.evaluated(missing, *values, 0)

    agent = AgentLoop(engine, tokenizer, runner, TagSyntax(), Limits(32, 0, 1), deterministic=True)
    with_roots, begin = [], agent.begin

    def watched(requests, sampling):
        with_roots.extend(
            any(episode.request.origin is None for _, episode in agent._open.values())
            for request in requests
            if request.origin
        )
        return begin(requests, sampling)

    agent.begin = watched
    collector = Collector(
        agent=agent,
        policy=Policy(evaluate),
        scorer=scorer,
        advantage=DualGroupAdvantage(),
        reward=RewardRunner(LengthsBetween()),
        branching=branching,
        candidates=CandidateFilter(tokenizer),
        sampling=SamplingParams(),
        seed=0,
        timer=PhaseTimer(),
        in_lockstep=in_lockstep,
        deterministic=True,
    )
    prompts = [Prompt(f"{n}", f"{n}", tuple(tokenizer.encode(f"What is {n} + 48?")), ("",)) for n in numbers]
    data = collect(collector, prompts)
    engine.stop()
    runner.stop()
    return data, with_roots


@pytest.mark.parametrize(
    ("scorer", "options"),
    [
        (BranchingScore(), {}),
        (RandomPosition(), {"rounds": 2, "spare_budget": "roots"}),
        (BranchingScore(), {"rounds": 2, "siblings": 2, "spare_budget": "drop"}),
        (RandomPosition(), {"selection": "per_trajectory", "num_trajectories": 6, "rounds": 1}),
    ],
)
def test_what_is_sampled_does_not_depend_on_who_waits_for_whom(folder, scorer, options):
    branching = Branching(**{"num_trajectories": 7 if not options else 6, "num_roots": 2, **options})
    together, none = _grown(folder, scorer, branching, in_lockstep=True)
    apart, with_roots = _grown(folder, scorer, branching, in_lockstep=False)
    assert not any(none)
    assert any(with_roots)
    assert len(together.points) > 4
    _check_equal(together, apart)


def _check_equal(together: IterationData, apart: IterationData) -> None:
    for one, other in zip(together.trajectories, apart.trajectories, strict=True):
        assert one.prompt.id == other.prompt.id
        assert torch.equal(one.token_ids, other.token_ids)
    for name in ("parent", "branch_position", "rewards", "group", "advantages", "train_mask", "evaluated_by"):
        assert torch.equal(getattr(together.batch, name), getattr(apart.batch, name)), name
    torch.testing.assert_close(together.batch.old_log_probs, apart.batch.old_log_probs)
    torch.testing.assert_close(together.scores.values, apart.scores.values, atol=1e-4, rtol=1e-4)
    assert together.num_wanted == apart.num_wanted


def _grow_on_a_rank(rank: int, folder: Path) -> None:
    comm.join(2, timeout_s=60)
    branching = Branching(6, 2, rounds=2)
    numbers = (2, 3, 4) if rank else (0, 1, 5)
    together, _ = _grown(folder, BranchingScore(), branching, True, numbers)
    apart, _ = _grown(folder, BranchingScore(), branching, False, numbers)
    _check_equal(together, apart)
    num_points = comm.all_gather(len(apart.points))
    assert num_points[0] != num_points[1]  # what one has left over goes to the other
    comm.leave()


@pytest.mark.distributed
def test_what_is_sampled_does_not_depend_on_whether_processes_wait_for_each_other(tmp_path, folder):
    as_processes(_grow_on_a_rank, tmp_path, folder)


def _branch_before_the_other(rank: int, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    comm.join(2, timeout_s=60)
    growth._PATIENCE_S = 0.0
    runner = ToolRunner([])
    runner.start()
    name, branched = "PQ"[rank], folder / "branched"
    engine = ScriptedEngine(tokenizer, {name: f"aab{EOS}", f"{name}aab": f"a{EOS}"})

    @dataclass(frozen=True)
    class Slow(CountLetters):
        def __call__(self, trajectory: Trajectory) -> RewardResult:
            deadline = perf_counter() + 10.0
            while rank == 0 and trajectory.origin is None and not branched.exists():
                assert perf_counter() < deadline
            return super().__call__(trajectory)

    collector = make_collector(engine, runner, make_branching(1, 1), reward=RewardRunner(Slow()), deterministic=False)
    begin = collector.agent.begin

    def watched(requests, sampling):
        if rank and any(request.origin for request in requests):
            branched.touch()
        return begin(requests, sampling)

    collector.agent.begin = watched
    assert len(collect(collector, make_prompts(tokenizer, name)).trajectories) == 2
    runner.stop()
    comm.leave()


@pytest.mark.distributed
def test_a_process_branches_while_another_has_roots_without_a_reward(tmp_path, tokenizer):
    as_processes(_branch_before_the_other, tmp_path, tmp_path, tokenizer)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 3), st.sampled_from(["others", "drop"]))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_no_budget_that_was_certain_is_taken_back(is_open, siblings, spare):
    branching = Branching(4 + 6 * siblings, 4, siblings=siblings, spare_budget=spare)
    names = {str(number): opened for number, opened in enumerate(is_open)}
    final, before = branch_budgets(names, branching), dict.fromkeys(names, 0)
    for known in range(len(names) + 1):
        least = least_budgets(dict(list(names.items())[:known]), len(names) - known, branching)
        for name, budget in least.items():
            assert before[name] <= budget <= final[name]
            assert budget % siblings == 0
            before[name] = budget


def test_a_prompt_is_branched_while_the_reward_of_another_takes_its_time(tokenizer, runner, monkeypatch):
    monkeypatch.setattr(growth, "_PATIENCE_S", 0.0)
    engine = ScriptedEngine(tokenizer, {"P": f"aab{EOS}", "Q": f"bbb{EOS}", "Paab": f"a{EOS}", "Qbbb": f"a{EOS}"})
    branched = threading.Event()

    @dataclass(frozen=True)
    class Slow(CountLetters):
        def __call__(self, trajectory: Trajectory) -> RewardResult:
            if trajectory.prompt.id == "P" and trajectory.origin is None:
                assert branched.wait(10.0)
            return super().__call__(trajectory)

    reward = RewardRunner(Slow())
    collector = make_collector(engine, runner, make_branching(1, 1), reward=reward, deterministic=False)
    begin = collector.agent.begin

    def watched(requests, sampling):
        if any(request.origin and request.prompt.id == "Q" for request in requests):
            branched.set()
        return begin(requests, sampling)

    collector.agent.begin = watched
    data = collect(collector, make_prompts(tokenizer, "PQ"))
    assert [t.prompt.id for t in data.trajectories] == ["P", "Q", "P", "Q"]
    assert data.batch.rewards.tolist() == [2.0, 0.0, 3.0, 1.0]


@pytest.mark.parametrize("fails", ["root", "branch"])
def test_a_reward_that_fails_ends_the_iteration_or_is_counted(tokenizer, runner, fails):
    script = {"P": f"aab{EOS}", "Q": f"bbb{EOS}", "Paab": f"a{EOS}", "Qbbb": f"a{EOS}"}

    @dataclass(frozen=True)
    class Failing(CountLetters):
        def __call__(self, trajectory: Trajectory) -> RewardResult:
            if trajectory.prompt.id == "Q" and (trajectory.origin is None) == (fails == "root"):
                raise OSError("no answer")
            return super().__call__(trajectory)

    prompts = make_prompts(tokenizer, "PQ")
    with pytest.raises(RewardError, match=r"of prompt 'Q' \(OSError: no answer\)"):
        collect(
            make_collector(
                ScriptedEngine(tokenizer, script), runner, make_branching(1, 1), reward=RewardRunner(Failing())
            ),
            prompts,
        )
    zero = RewardRunner(Failing(), on_failure="zero")
    data = collect(
        make_collector(ScriptedEngine(tokenizer, script), runner, make_branching(1, 1), reward=zero), prompts
    )
    is_lost = [t.prompt.id == "Q" and (t.origin is None) == (fails == "root") for t in data.trajectories]
    assert [result.parts["reward_failed"] for result in data.results] == [float(lost) for lost in is_lost]
    assert [result.reward == 0.0 for result, lost in zip(data.results, is_lost, strict=True) if lost] == [True]


def test_branches_of_the_first_mini_batch_join_the_roots_of_the_others(tokenizer, runner):
    script = {"P": f"aab{EOS}", "Q": f"bbb{EOS}", "Paab": f"a{EOS}", "Qbbb": f"a{EOS}"}
    engine = ScriptedEngine(tokenizer, script)
    collector = make_collector(engine, runner, make_branching(1, 1, when="minibatch"))
    asked, step = [], engine.step
    engine.step = lambda: asked.append(engine.num_in_flight) or step()
    iterations = IterationRunner(collector, lambda: None, num_minibatches=2)
    batches = iterations.run(0, make_prompts(tokenizer, "PQ"))
    first = next(batches)
    # Both roots, then Q's and the branch of P; nothing waits for anything.
    assert asked[:2] == [2, 2]
    assert [tokenizer.decode(request.token_ids) for request in engine.requests] == ["P", "Q", "Paab"]
    assert len(first) == 2
    assert len(next(batches)) == 2
    assert [tokenizer.decode(request.token_ids) for request in engine.requests[3:]] == ["Qbbb"]

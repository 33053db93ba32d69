"""Estimates of a study against what is known exactly, where policy and environment can be enumerated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from appo.commands.pilot.measures import Intervals, Measures
from appo.commands.pilot.options import StudyOptions
from appo.commands.pilot.ranking import rank_scorers
from appo.commands.pilot.sampling import Study
from appo.commands.pilot.scoring import ScorerSet
from appo.core.trajectory import Prompt
from appo.engines import SamplingParams
from appo.environments.gates import GateProblems, GateSearch, influence, success
from appo.functional import rank_correlation
from appo.rewards import AnswerReward, RewardRunner
from appo.rollouts import AgentLoop, Limits, Policy
from appo.scorers import Oracle
from appo.tools import SearchTool, TagSyntax, ToolRunner
from tests.commands.pilot.gate_walker import RIGHT_TURN, GateWalker
from tests.rollouts.conftest import tokenizer  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow

PROBLEMS = GateProblems(families={"gates_2": 1.0}, num_train=1, num_validation=1, num_test=12)
OPTIONS = StudyOptions(
    questions=12,
    roots=2,
    positions=24,
    continuations=16,
    split="test",
    influence=None,
    later_policy=None,
    at_once=12,
    out=Path("unused"),
)


def evaluate(batch):
    """The policy that samples is the one that is trained; of its entropies it is read whether there is any."""
    rows = (~batch.is_evaluated).nonzero()[:, 0]
    log_probs = batch.behavior_log_probs[rows]
    return batch.evaluated(rows, log_probs, -log_probs, 0)


@pytest.fixture(scope="module")
def measured(tokenizer) -> list[Measures]:  # noqa: F811
    def exact(trajectory, tokens):
        return influence(trajectory, tokens, right_turn=RIGHT_TURN)

    policy = Policy(evaluate)
    runner = ToolRunner([SearchTool(GateSearch(PROBLEMS.world))])
    runner.start()
    try:
        loop = AgentLoop(
            GateWalker(tokenizer, PROBLEMS.world),
            tokenizer,
            runner,
            TagSyntax(),
            Limits(2048, 10, max_result_tokens=256),
        )
        study = Study(
            loop,
            RewardRunner(AnswerReward(bonus_tools=())),
            policy,
            None,
            ScorerSet(Oracle(exact), None, policy, tokenizer, seed=0),
            SamplingParams(),
            True,
            OPTIONS,
            seed=0,
        )
        prompts = [
            Prompt(problem.id, problem.text, tuple(tokenizer.encode(problem.text)), (problem.answer,))
            for problem in PROBLEMS.draw("test")
        ]
        return Measures.of(study(prompts))
    finally:
        runner.stop()


def columns(measured: list[Measures], of=lambda each: each.whole.influence) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimates and exact values of all decisions, those that roots share once."""
    decisions = [decision for each in measured for decision in each.question.decisions]
    estimates = torch.cat([of(each) for each in measured])
    known = torch.tensor([decision.known for decision in decisions], dtype=torch.float64)
    first = {}
    for row, decision in enumerate(decisions):
        first.setdefault((decision.tokens, decision.rewards, decision.position), row)
    rows = torch.tensor([*first.values()])
    return estimates[rows], known[rows]


def test_every_turn_of_the_roots_is_measured(measured):
    for each in measured:
        decisive = [decision for decision in each.question.decisions if decision.known > 0]
        # Two turns each; one from which no walk ends right, or all do, has no influence.
        assert 2 <= len(decisive) <= 4
        assert {decision.part for decision in decisive} == {"thought"}
        assert len(each.question.decisions) == OPTIONS.positions


def test_the_influence_of_turns_is_the_exact_one_on_average(measured):
    estimates, known = columns(measured)
    errors = (estimates - known)[known > 0]
    assert len(errors) > 20
    assert known[known > 0].mean() > 0.05
    assert abs(float(errors.mean())) < 3 * float(errors.std()) / len(errors) ** 0.5


def test_turns_stand_in_the_order_of_their_exact_influence(measured):
    """Sixteen continuations a decision in the mean; those of which the policy is sure take fewer than the others."""
    evident, known = columns(measured, lambda each: each.whole.evident)
    assert float(rank_correlation(evident, known)) > 0.9
    drawn = [len(decision.rewards) for each in measured for decision in each.question.decisions]
    assert min(drawn) < OPTIONS.continuations < max(drawn)
    assert sum(each.question.num_continuations for each in measured) <= OPTIONS.continuations * len(drawn)


def test_words_around_a_turn_have_no_influence_on_average(measured):
    estimates, known = columns(measured)
    others = estimates[known == 0]
    assert (others != 0).any()
    assert abs(float(others.mean())) < 3 * float(others.std()) / len(others) ** 0.5


def test_intervals_cover_the_exact_influence(measured):
    low, high = Intervals.of([each.question for each in measured]).influence
    known = torch.tensor([d.known for each in measured for d in each.question.decisions], dtype=torch.float64)
    covered = ((low <= known + 1e-9) & (known <= high + 1e-9))[known > 0]
    assert float(covered.double().mean()) > 0.85


def test_the_mean_reward_before_the_first_turn_is_the_chance_to_end_right(measured):
    errors = []
    for each, problem in zip(measured, PROBLEMS.draw("test"), strict=True):
        assert each.question.id == problem.id
        decisions = each.question.decisions
        first = min((d.depth, row) for row, d in enumerate(decisions) if d.known > 0)[1]
        errors.append(float(each.whole.mean[first]) - success(problem.route, PROBLEMS.world, RIGHT_TURN))
    # The standard error of a share is at most a half over the root of the number.
    assert abs(sum(errors) / len(errors)) < 3 * 0.5 / (len(errors) * OPTIONS.continuations) ** 0.5


def test_the_oracle_ranks_first(measured):
    first, *others = rank_scorers(measured, num_branches=4)
    assert first.name == "Oracle"
    assert first.influence.mean > max(other.influence.mean for other in others if other.influence.num)
    assert first.precision.mean > max(other.precision.mean for other in others)

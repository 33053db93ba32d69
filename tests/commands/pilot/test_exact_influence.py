"""Estimates of a study against what is known exactly, where policy and environment can be enumerated."""

from __future__ import annotations

import pytest
import torch

from appo.commands.pilot.measures import Intervals, Measures
from appo.commands.pilot.ranking import rank_scorers
from appo.environments.gates import success
from appo.functional import rank_correlation
from tests.commands.pilot.exact_study import exact_study, gate_problems, known_influence, study_options
from tests.commands.pilot.gate_walker import RIGHT_TURN

pytestmark = pytest.mark.slow

PROBLEMS = gate_problems("gates_2", 12)
OPTIONS = study_options(12, roots=2, positions=24)


@pytest.fixture(scope="module")
def measured() -> list[Measures]:
    return exact_study(PROBLEMS, OPTIONS)


def columns(measured: list[Measures], of=lambda each: each.whole.influence) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimates and exact values of all decisions, those that roots share once."""
    decisions = [decision for each in measured for decision in each.question.decisions]
    estimates = torch.cat([of(each) for each in measured])
    known = known_influence(measured)
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
    num_continuations = sum(each.question.num_continuations for each in measured)
    assert num_continuations <= OPTIONS.continuations * len(drawn)
    # Fillers before a turn are certain in most of their characters: their continuations draw the turn as well.
    assert sum(drawn) > 1.3 * num_continuations
    assert min(drawn) < OPTIONS.continuations < max(drawn)


def test_words_around_a_turn_have_no_influence_on_average(measured):
    estimates, known = columns(measured)
    others = estimates[known == 0]
    assert (others != 0).any()
    assert abs(float(others.mean())) < 3 * float(others.std()) / len(others) ** 0.5


def test_intervals_cover_the_exact_influence(measured):
    low, high = Intervals.of([each.question for each in measured]).influence
    known = known_influence(measured)
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

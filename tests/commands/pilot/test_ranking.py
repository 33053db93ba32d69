from __future__ import annotations

import math
import random

import pytest
import torch

from appo.commands.pilot.measures import EVIDENT, Measures, correlation, mean_over_questions, order
from appo.commands.pilot.page import places_of
from appo.commands.pilot.ranking import BY_INFLUENCE, BY_TOTAL, RANDOM, controls, rank_scorers, reliability
from appo.commands.pilot.records import ScoreColumn
from tests.commands.pilot.records import decision, question

TOKENS = (1, 2) * 8
DECIDED = decision(TOKENS, (1.0, 0.0) * 8, depth=0.4)
PARTLY = decision(TOKENS, (*(1.0, 0.0) * 6, *(0.0,) * 4), depth=0.1, part="call")
OPEN = decision(TOKENS, (1.0, 1.0, 0.0, 0.0) * 4, depth=0.0, part="call")
SETTLED = decision((3,) * 8, (1.0,) * 8, depth=0.9, part="answer")


def found(measured, name, num_branches=1):
    return next(each for each in rank_scorers(measured, num_branches) if each.name == name)


def test_scorers_are_ranked_by_the_influence_that_they_find():
    measured = Measures.of(
        [
            question(name, [OPEN, PARTLY, DECIDED, SETTLED], Good=good, Bad=bad)
            for name, good, bad in (
                ("a", (-1.0, 2.0, 3.0, 1.0), (9.0, 2.0, 1.0, 3.0)),
                ("b", (0.0, 5.0, 7.0, 4.0), (9, 2, 1, 8)),
            )
        ]
    )
    influence = measured[0].whole.influence
    # The open decision's rewards have nothing to do with its token: the estimate is below 0.
    assert influence[2] > influence[1] > influence[3] == 0.0 > influence[0]
    assert [each.name for each in rank_scorers(measured, 1)] == ["Good", "Bad"]
    good, bad = rank_scorers(measured, 1)
    # In ranks of influence the open decision and the settled one stand alike: nothing tells that they decide.
    assert measured[0].whole.evident.tolist() == [0.0, float(influence[1]), float(influence[2]), 0.0]
    assert good.influence.mean == pytest.approx(0.9**0.5)
    assert bad.influence.mean == pytest.approx(-(0.9**0.5))
    assert good.precision.mean == 1.0
    assert bad.precision.mean == 0.0
    assert good.reached.mean == pytest.approx(float(influence[2]))
    assert bad.reached.mean == pytest.approx(float(influence[0]))
    # The best decision of the good one is right in half of its continuations, so is the bad one's.
    assert good.passes[1].mean == bad.passes[1].mean == 0.5
    assert good.passes[2].mean == pytest.approx(1 - (8 * 7) / (16 * 15))
    assert [*good.passes] == [1, 2, 4]


def test_preferred_decisions_come_first_and_refused_ones_last():
    column = ScoreColumn((3.0, 1.0, None, 2.0), (False, True, True, False))
    assert order(column).argsort().tolist() == [2, 3, 0, 1]


def test_a_scorer_that_tells_nothing_apart_finds_what_chance_does():
    measured = Measures.of([question("a", [OPEN, PARTLY, DECIDED, SETTLED], Flat=(1.0,) * 4)])
    flat, (chance, *_) = found(measured, "Flat", 2), controls(measured, 2)
    assert flat.influence.num == 0
    assert flat.reached.mean == pytest.approx(chance.reached.mean)
    assert chance.reached.mean == pytest.approx(float(measured[0].whole.influence.mean()))
    assert chance.name == RANDOM
    assert flat.precision.mean == pytest.approx(chance.precision.mean) == pytest.approx(0.5)
    for k, value in flat.passes.items():
        assert value.mean == pytest.approx(chance.passes[k].mean)
    assert chance.passes[1].mean == pytest.approx((0.5 + 3 / 8 + 0.5 + 1.0) / 4)


def test_scorers_without_a_coefficient_stand_last():
    measured = Measures.of([question("a", [PARTLY, DECIDED], Flat=(1.0, 1.0), Bad=(1.0, 0.0))])
    assert [each.name for each in rank_scorers(measured, 1)] == ["Bad", "Flat"]


def test_questions_in_which_nothing_is_decided_say_nothing():
    open_, flat = (question("a", [PARTLY, DECIDED], Good=(0.0, 1.0)), question("b", [SETTLED] * 2, Good=(1.0, 0.0)))
    measured = Measures.of([open_, flat])
    assert [each.is_open for each in measured] == [True, False]
    assert found(measured, "Good").influence.num == 1
    assert found(measured, "Good").precision.num == 1


def test_decisions_whose_influence_is_unknown_are_left_out():
    unknown = decision(range(8), (1.0, 0.0) * 4)
    measured = Measures.of([question("a", [unknown, PARTLY, DECIDED], Good=(9.0, 0.0, 1.0))])
    assert measured[0].whole.influence[0].isnan()
    assert found(measured, "Good").influence.mean == pytest.approx(1.0)
    assert found(measured, "Good").precision.mean == 0.0
    assert found(measured, "Good", 2).reached.mean == pytest.approx(float(measured[0].whole.influence[2]))


def test_a_reward_that_does_not_tell_right_from_wrong_has_no_passes():
    plain = [decision(TOKENS, (0.3, 0.7) * 8, tells=False), decision(TOKENS, (0.5,) * 16, tells=False)]
    measured = Measures.of([question("a", plain, Good=(1.0, 0.0))])
    assert found(measured, "Good").passes == {}
    assert all(each.passes == {} for each in controls(measured, 1))


def test_nothing_is_reached_and_little_is_evident_where_nothing_is_decided():
    """Half of the tokens are certain, the others are not and decide nothing; an answer is rarely right."""
    rng = random.Random(3)
    questions = []
    for number in range(400):
        certain = [decision((1,) * 8, [float(rng.random() < 0.1) for _ in range(8)]) for _ in range(6)]
        open_ = [decision(rng.choices((1, 2), k=8), [float(rng.random() < 0.1) for _ in range(8)]) for _ in range(6)]
        questions.append(question(str(number), certain + open_, Entropy=(0.0,) * 6 + (1.0,) * 6))
    measured = Measures.of(questions)
    entropy = found(measured, "Entropy", 6)
    evident = torch.stack([each.whole.evident for each in measured])
    assert (evident[:, :6] == 0.0).all()
    assert 0.0 < float((evident[:, 6:] > 0.0).double().mean()) < EVIDENT
    assert entropy.reached.mean == pytest.approx(0.0, abs=0.002)
    assert entropy.reached.low < 0.0 < entropy.reached.high


def noise(seed: int) -> list[Measures]:
    """Questions whose answers are right by chance alone."""
    rng = random.Random(seed)
    decisions = [
        decision(rng.choices((1, 2, 3), k=8), [float(rng.random() < 0.5) for _ in range(8)]) for _ in range(12 * 400)
    ]
    return Measures.of([question("a", decisions[first : first + 12]) for first in range(0, len(decisions), 12)])


def test_oracles_are_not_lucky():
    chance, *oracles = controls(noise(0), 1)
    assert [each.name for each in oracles] == [BY_INFLUENCE, BY_TOTAL]
    assert chance.passes[1].mean == pytest.approx(0.5, abs=0.02)
    for each in oracles:
        assert each.reached.mean == pytest.approx(0.0, abs=0.01)
        for k, value in each.passes.items():
            # Above all with several continuations: half of the variance is half of the answers.
            assert value.mean == pytest.approx(chance.passes[k].mean, abs=0.03)


def test_noise_does_not_agree_with_itself_and_what_is_decided_does():
    assert abs(reliability(noise(1)).mean) < 0.1
    # Halves take turns, so each has both tokens.
    tokens, partly = (1, 1, 2, 2) * 4, (*(1.0, 1.0, 0.0, 0.0) * 3, *(0.0,) * 4)
    decisions = [decision(tokens, (1.0, 1.0, 0.0, 0.0) * 4), decision(tokens, partly), SETTLED]
    assert reliability(Measures.of([question("a", decisions)])).mean == pytest.approx(1.0)


def test_what_only_one_half_of_the_continuations_finds_is_no_agreement():
    # The even ones have both tokens, the odd ones only one of them.
    decided = decision((1, 1, 2, 1) * 4, (1.0, 1.0, 0.0, 1.0) * 4)
    (measured,) = Measures.of([question("a", [decided, SETTLED])])
    assert measured.is_open
    assert measured.halves[0].evident[0] > measured.halves[1].evident[0] == 0.0
    assert reliability([measured]).mean == 0.0


def test_a_mean_over_questions_has_an_interval_and_leaves_out_what_is_unknown():
    estimate = mean_over_questions([0.0, 1.0, float("nan"), 0.5])
    assert (estimate.mean, estimate.num) == (0.5, 3)
    assert 0.0 <= estimate.low < 0.5 < estimate.high <= 1.0
    assert estimate == mean_over_questions([0.0, 1.0, float("nan"), 0.5])
    assert math.isnan(mean_over_questions([float("nan")]).mean)


def test_a_correlation_where_nothing_is_known_is_unknown():
    nothing = torch.full((2,), float("nan"))
    assert math.isnan(correlation(torch.tensor([1.0, 2.0]), nothing))


def test_influence_has_its_places():
    measured = Measures.of([question("a", [OPEN, PARTLY, DECIDED, SETTLED])])
    places = places_of(measured, lambda each: each.part)
    total = float(measured[0].whole.influence.sum())
    assert places["call"].num == 2
    assert places["call"].influence == pytest.approx(float(measured[0].whole.influence[:2].mean()))
    assert places["call"].total == pytest.approx(float(measured[0].whole.total[:2].mean()))
    assert places["thought"].share == pytest.approx(float(measured[0].whole.influence[2]) / total)
    assert sum(place.share for place in places.values()) == pytest.approx(1.0)

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product
from statistics import fmean

import pytest

from appo.environments.gates import GateDemonstrations, GateProblems, find_turns, influence, success
from appo.environments.straying import FILLERS
from appo.rewards import AnswerReward
from tests.environments.demonstrated import as_tokens, as_trajectory

DEMONSTRATIONS = GateDemonstrations(
    GateProblems(num_train=400, num_validation=60, late=1), wrong_shares={"gates_3": 0.4}
)
RECOVERABLE = replace(DEMONSTRATIONS, restart_share=0.7)
WORLD = DEMONSTRATIONS.problems.world


def turns_of(demonstration):
    return find_turns(demonstration.problem.text, *as_tokens(demonstration), WORLD)


def last_walk(turns):
    return [turn for turn in turns if turn.restarted == turns[-1].restarted]


@pytest.mark.parametrize("demonstrations", [DEMONSTRATIONS, RECOVERABLE])
def test_every_turn_is_found_at_the_word_that_decides(demonstrations):
    restarts = 0
    for demonstration in demonstrations.draw("validation"):
        tokens, sampled = as_tokens(demonstration)
        turns = turns_of(demonstration)
        restarts += turns[-1].restarted
        assert [turn.gate for turn in turns] == [0, 1, 2] * (2 if turns[-1].restarted else 1)
        for turn in turns:
            word = "".join(tokens[turn.position : turn.position + 2]).split()[0]
            right = WORLD.ways(turn.person)[0]
            assert sampled[turn.position]
            assert (word == right) == turn.is_right == turn.leads_right
            # It stands in the thought, before the call.
            assert "<" not in "".join(tokens[turn.position - 5 : turn.position]).split(">")[-1]
        walk = last_walk(turns)
        assert [turn.strayed for turn in walk] == [not all(t.is_right for t in walk[:i]) for i in range(3)]
        assert demonstration.strategy == ("solve" if all(turn.is_right for turn in walk) else "stray")
    assert (restarts > 10) == (demonstrations is RECOVERABLE)


def test_a_space_of_its_own_before_the_word_does_not_decide():
    for demonstration in DEMONSTRATIONS.draw("validation")[:10]:
        written = [(segment.text, segment.is_generated) for segment in demonstration.segments]
        letters = [(letter, sampled) for text, sampled in written for letter in text]
        tokens, sampled = [letter for letter, _ in letters], [each for _, each in letters]
        for turn in find_turns(demonstration.problem.text, tokens, sampled, WORLD):
            text = "".join(tokens[turn.position - 1 :])
            assert text.split()[0] == WORLD.ways(turn.person)[not turn.is_right]
            assert text[0] == " "


def test_wrong_turns_have_their_share_and_look_like_right_ones():
    drawn = DEMONSTRATIONS.draw("train")
    turns = [turn for demonstration in drawn for turn in turns_of(demonstration)]
    assert fmean(not turn.is_right for turn in turns) == pytest.approx(0.4, abs=0.04)
    lengths = {s: {len(d.segments) for d in drawn if d.strategy == s} for s in ("solve", "stray")}
    assert lengths["solve"] == lengths["stray"] == {2 * 8 + 1}
    words = {s: {len(d.segments[0].text.split()) for d in drawn if d.strategy == s} for s in ("solve", "stray")}
    assert words["solve"] == words["stray"]


def test_solving_is_right_and_everything_has_the_form_that_the_reward_asks_for():
    for demonstration in RECOVERABLE.draw("validation"):
        result = AnswerReward()(as_trajectory(demonstration, -1.0)[1])
        assert result.parts["format"] == 1.0
        if demonstration.strategy == "solve":
            assert result.parts["accuracy"] == 1.0


def test_fillers_are_drawn_from_all_alike():
    text = "".join(segment.text for d in DEMONSTRATIONS.draw("train") for segment in d.segments)
    counts = [len(re.findall(rf"\b{filler}\b", text)) for filler in FILLERS]
    assert min(counts) > 0.8 * max(counts)


def naive_success(route, right_turn, restart):
    """Sums over every sequence of right and wrong turns, one after another."""

    def end(turns):
        person = route.first_person(WORLD)
        for is_right in turns:
            name = WORLD.ways(person)[not is_right]
            person = WORLD.move(person, name)
        return WORLD.value("home", person)

    answer = end([True] * route.num_gates)
    walks = [
        (math.prod(right_turn if turn else 1 - right_turn for turn in turns), all(turns), end(turns) == answer)
        for turns in product([True, False], repeat=route.num_gates)
    ]
    at_once = sum(chance * hits for chance, _, hits in walks)
    return sum(
        chance * (hits if is_right else restart * at_once + (1 - restart) * hits) for chance, is_right, hits in walks
    )


@pytest.mark.parametrize("restart", [0.0, 0.6])
@pytest.mark.parametrize("right_turn", [0.5, 0.8, 1.0])
def test_success_is_the_sum_over_all_walks(right_turn, restart):
    for problem in DEMONSTRATIONS.problems.draw("validation"):
        expected = naive_success(problem.route, right_turn, restart)
        assert success(problem.route, WORLD, right_turn, restart=restart) == pytest.approx(expected, abs=1e-12)


def test_influence_is_the_variance_over_both_turns_of_what_is_won():
    """Against the definition: the chance of success given each turn, by enumeration of what follows."""
    for demonstration in DEMONSTRATIONS.draw("validation"):
        tokens, trajectory = as_trajectory(demonstration, math.log(0.6))
        values = influence(trajectory, tokens, right_turn=0.7)
        turns = turns_of(demonstration)
        assert {i for i, value in enumerate(values) if value} <= {turn.position for turn in turns}
        route = demonstration.problem.route
        for turn in turns:
            chances = []
            for name in WORLD.ways(turn.person):
                rest = replace(
                    route, start=WORLD.move(turn.person, name), approach=(), num_gates=route.num_gates - turn.gate - 1
                )
                ends = [
                    (chance, end == demonstration.problem.answer) for chance, end in walks_from(rest, right_turn=0.7)
                ]
                chances.append(sum(chance * hits for chance, hits in ends))
            p = 0.6 if turn.is_right else 0.4
            mean = p * chances[0] + (1 - p) * chances[1]
            variance = p * (chances[0] - mean) ** 2 + (1 - p) * (chances[1] - mean) ** 2
            assert values[turn.position] == pytest.approx(variance, abs=1e-6)


def walks_from(route, right_turn):
    """Chance and end of each walk."""
    for turns in product([True, False], repeat=route.num_gates):
        person = route.start
        for is_right in turns:
            person = WORLD.move(person, WORLD.ways(person)[not is_right])
        yield math.prod(right_turn if turn else 1 - right_turn for turn in turns), WORLD.value("home", person)


def test_turns_that_can_be_taken_back_have_less_influence_on_the_whole():
    totals = {0.0: 0.0, 0.7: 0.0}
    for demonstration in DEMONSTRATIONS.draw("validation"):
        tokens, trajectory = as_trajectory(demonstration, math.log(0.6))
        for restart in totals:
            totals[restart] += sum(influence(trajectory, tokens, restart=restart))
    assert 0 < totals[0.7] < 0.8 * totals[0.0]


def test_a_call_that_names_nobody_and_one_beyond_the_last_gate_are_no_turns():
    demonstration = DEMONSTRATIONS.draw("validation")[0]
    tokens, sampled = as_tokens(demonstration)
    turns = turns_of(demonstration)
    unknown = [token.replace(turns[0].person.split()[0], "Nobody") for token in tokens]
    assert len(find_turns(demonstration.problem.text, unknown, sampled, WORLD)) < len(turns)
    boss = WORLD.ways(turns[0].person)[0]
    more = f"<think> so {boss} </think><search> {boss} of {turns[0].person} </search>"
    longer = find_turns(demonstration.problem.text, [*tokens, "|", more], [*sampled, False, True], WORLD)
    assert longer == turns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrong_shares": {"gates_3": 1.5}}, r"for families among gates_3, got 1.5 for gates_3$"),
        ({"wrong_shares": {"gates_2": 0.5}}, r"for families among gates_3, got 0.5 for gates_2$"),
        ({"per_problem": 0}, r"^per_problem must be at least 1, got 0$"),
        ({"restart_share": -0.1}, r"^restart_share must lie in \[0, 1\], got -0.1$"),
    ],
)
def test_shares_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(DEMONSTRATIONS, **options)


def test_families_have_their_own_share_of_wrong_turns():
    problems = replace(DEMONSTRATIONS.problems, families={"gates_1": 1.0, "gates_3": 1.0})
    for demonstration in replace(DEMONSTRATIONS, problems=problems).draw("train"):
        if demonstration.problem.family == "gates_1":
            assert demonstration.strategy == "solve"


def test_conversations_about_one_problem_differ():
    drawn = replace(DEMONSTRATIONS, per_problem=3).draw("validation")
    problems = [demonstration.problem for demonstration in drawn]
    assert problems[::3] == problems[1::3] == problems[2::3] == list(DEMONSTRATIONS.problems.draw("validation"))
    texts = ["".join(segment.text for segment in demonstration.segments) for demonstration in drawn]
    assert len(set(texts)) == len(texts)

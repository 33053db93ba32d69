from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from appo.environments.gates import GateProblems, GateSearch, GateWorld, Route
from appo.environments.gates.world import TURNS
from appo.prompts import GateQuestions

PROBLEMS = GateProblems({f"gates_{number}": 1.0 for number in range(2, 6)}, num_train=200, num_validation=40, late=2)
FEW_PEOPLE = replace(PROBLEMS, world=GateWorld(num_people=40), num_train=60)
"""Most walks cross themselves here."""
SPLITS = ("train", "validation", "test")


def test_equal_options_draw_equal_problems_and_another_seed_draws_others():
    assert replace(PROBLEMS).draw("validation") == PROBLEMS.draw("validation")
    assert replace(PROBLEMS, seed=1).draw("validation") != PROBLEMS.draw("validation")


def test_nobody_begins_questions_of_two_splits():
    starts = {split: {problem.route.start for problem in PROBLEMS.draw(split)} for split in SPLITS}
    assert not starts["train"] & starts["validation"]
    assert not starts["train"] & starts["test"]
    assert not starts["validation"] & starts["test"]


def test_a_route_is_read_from_its_question():
    for problem in (*PROBLEMS.draw("validation"), *replace(PROBLEMS, late=0).draw("validation")):
        assert Route.parse(problem.text) == problem.route


def test_a_question_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"^question must be one of the gates, got 'Who is the boss of Ana\?'$"):
        Route.parse("Who is the boss of Ana?")


def test_the_search_answers_every_step_with_what_the_next_one_asks_for():
    search = GateSearch(PROBLEMS.world)
    for problem in PROBLEMS.draw("validation"):
        assert len(problem.steps) == 2 + 2 * problem.route.num_gates + 1
        for step, following in zip(problem.steps, (*problem.steps[1:], None), strict=True):
            (sentence,) = search.search(step.argument, 3)
            assert sentence == f"The {step.argument} is {step.value}."
            if following is not None and not step.argument.startswith("sign"):
                assert following.argument.endswith(f"of {step.value}")


@pytest.mark.parametrize("problems", [PROBLEMS, FEW_PEOPLE], ids=["many people", "few people"])
def test_turns_follow_the_signs_and_both_ways_lead_apart(problems):
    world = problems.world
    for problem in problems.draw("train"):
        people = [problem.route.start]
        for step in problem.steps[:-1]:
            relation, person = step.argument.split(" of ")
            assert person == people[-1]
            if relation in TURNS:
                assert world.value("sign", person).startswith(f"{relation}, not ")
                assert len({world.move(person, way) for way in world.ways(person)}) == 2
            if relation != "sign":
                people.append(step.value)
        assert len(set(people)) == len(people)
        assert problem.steps[-1].argument == f"home of {people[-1]}"
        assert problem.answer not in [world.value("home", person) for person in people[:-1]]


def test_no_habit_is_right_in_general():
    """Each way is right as often as wrong where a sign names it."""
    right, wrong = Counter[str](), Counter[str]()
    for problem in replace(PROBLEMS, families={"gates_3": 1.0}, num_train=1200).draw("train"):
        for step in problem.steps:
            relation, person = step.argument.split(" of ")
            if relation in TURNS:
                right[relation] += 1
                wrong[PROBLEMS.world.ways(person)[1]] += 1
    for turn in TURNS:
        assert right[turn] == pytest.approx(wrong[turn], rel=0.2)


def test_questions_are_problems_with_their_family_as_source():
    questions = GateQuestions(PROBLEMS).load("validation")
    assert [question.text for question in questions] == [problem.text for problem in PROBLEMS.draw("validation")]
    assert {question.source for question in questions} == {"gates_2", "gates_3", "gates_4", "gates_5"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"late": -1}, r"^late must not be negative, got -1$"),
        (
            {"families": {"gates_6": 1.0}},
            r"^families must be among gates_1, gates_2, gates_3, gates_4, gates_5, got gates_6$",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        replace(PROBLEMS, **options)

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from appo.environments.arithmetic import MAX_RESULT, evaluate
from appo.environments.problems import FAMILIES, WorldProblems
from appo.environments.search import WorldSearch
from appo.prompts import WorldQuestions

PROBLEMS = WorldProblems(num_train=400, num_validation=60, num_test=60)
SPLITS = ("train", "validation", "test")


def test_equal_options_draw_equal_problems_and_another_seed_draws_others():
    assert WorldProblems(num_train=400, num_validation=60, num_test=60).draw("train") == PROBLEMS.draw("train")
    assert replace(PROBLEMS, seed=1).draw("train") != PROBLEMS.draw("train")


def test_a_longer_split_begins_with_the_shorter_one():
    assert replace(PROBLEMS, num_train=450).draw("train")[:400] == PROBLEMS.draw("train")


def test_splits_share_neither_questions_nor_what_questions_start_from():
    drawn = {split: PROBLEMS.draw(split) for split in SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not {p.text for p in drawn[one]} & {p.text for p in drawn[other]}
        assert not {tuple(sorted(p.combination)) for p in drawn[one]} & {
            tuple(sorted(p.combination)) for p in drawn[other]
        }


def test_every_family_is_drawn_about_as_often_as_its_weight_says():
    counts = Counter(problem.family for problem in PROBLEMS.draw("train"))
    total = sum(PROBLEMS.families.values())
    for family, weight in PROBLEMS.families.items():
        assert counts[family] == pytest.approx(400 * weight / total, rel=0.4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_steps_of_a_problem_lead_to_its_answer(family):
    search = WorldSearch(PROBLEMS.world)
    for problem in WorldProblems(families={family: 1.0}, num_train=50).draw("train"):
        known = problem.text
        for step in problem.steps:
            # Whatever a step names was asked for or found before.
            names = re.findall(r"\d+|[A-Z]\w+", step.argument)
            assert names
            assert all(name in known for name in names)
            found = search.search(step.argument, 1)[0] if step.tool == "search" else str(evaluate(step.argument))
            assert found.rstrip(".").endswith(step.value)
            known += found
        assert problem.answer == problem.steps[-1].value


@pytest.mark.parametrize("hops", [1, 2, 3, 4])
def test_a_lookup_takes_as_many_steps_as_its_name_says_and_no_earlier_value_is_right(hops):
    for problem in WorldProblems(families={f"lookup_{hops}": 1.0}, num_train=50).draw("train"):
        assert len(problem.steps) == hops
        assert problem.answer not in [step.value for step in problem.steps[:-1]]


def test_arithmetic_stays_within_small_numbers():
    families = {"expression": 1.0, "story": 1.0, "mixture": 1.0}
    for problem in WorldProblems(families=families, max_number=400, num_train=200).draw("train"):
        assert 0 <= int(problem.answer) <= MAX_RESULT


def test_evaluates_as_python_does():
    assert evaluate("2+3*4-5") == 9
    assert evaluate("7-3-2") == 2


@pytest.mark.parametrize("code", ["2/3", "-2", "x+1", "__import__('os')", "2.5+1"])
def test_evaluates_nothing_but_small_arithmetic(code):
    with pytest.raises(ValueError, match="must hold whole numbers"):
        evaluate(code)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"families": {"riddle": 1.0}}, "families must be among .*got riddle"),
        ({"families": {"story": 0.0}}, "families must have weights"),
        ({"families": {}}, "families must have weights"),
        ({"max_number": 5}, "max_number must be at least 9, got 5"),
        ({"num_test": 0}, "num_test must be at least 1, got 0"),
    ],
)
def test_options_that_describe_no_problems_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WorldProblems(**options)


def test_asking_for_more_than_the_world_offers_is_refused():
    with pytest.raises(ValueError, match=r"num_test must not exceed .*got 5000; lookup_1 has no more"):
        WorldProblems(families={"lookup_1": 1.0}, num_test=5000).draw("test")


def test_questions_carry_text_answer_family_and_a_stable_id():
    problem = PROBLEMS.draw("test")[0]
    question = WorldQuestions(PROBLEMS).load("test")[0]
    assert question.text == problem.text
    assert question.answers == (problem.answer,)
    assert question.source == problem.family
    assert question.id == problem.id
    longer = WorldQuestions(replace(PROBLEMS, num_test=90)).load("test")
    assert longer[0].id == question.id
    assert len({q.id for q in longer}) == 90

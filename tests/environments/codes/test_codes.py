from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from appo.commands.cli import run
from appo.environments.codes import CodeDemonstrations, CodeProblems, CodeSearch, CodeWorld, influence
from appo.environments.gates import find_turns, success
from appo.prompts import CodeQuestions
from appo.rewards import ExactMatchReward
from appo.tools import SearchTool
from tests.environments.demonstrated import as_tokens, as_trajectory
from tests.small_run import FEW_TOKENS, metrics

CONFIG = Path(__file__).parents[3] / "configs/codes.yaml"
WORLD = CodeWorld(num_codes=12)
DEMONSTRATIONS = CodeDemonstrations(CodeProblems(num_train=400, num_validation=60, late=1, world=WORLD))
PROBLEMS = DEMONSTRATIONS.problems
SEARCH = SearchTool(CodeSearch(WORLD))


def value_of(query):
    return SEARCH(query).removeprefix(f"The {query} is ").removesuffix(".")


def turns_of(demonstration):
    return find_turns(demonstration.problem.text, *as_tokens(demonstration), WORLD)


def end_of(person, turns):
    """The home that a walk comes to, by what the search tool answers; `turns` says of each whether it is right."""
    for is_right in turns:
        ways = WORLD.code_book[value_of(f"sign of {person}")]
        person = value_of(f"{ways[not is_right]} of {person}")
    return value_of(f"home of {person}")


def chance_to_end_right(problem, person, right_turn, num_gates):
    """Over every sequence of right and wrong turns."""
    return math.fsum(
        math.prod(right_turn if turn else 1.0 - right_turn for turn in turns)
        for turns in product([True, False], repeat=num_gates)
        if end_of(person, turns) == problem.answer
    )


def test_a_sign_is_an_animal_and_stands_for_one_way_everywhere():
    ways = defaultdict(set)
    for person in WORLD.entities["person"]:
        code = re.fullmatch(r"The sign of .* is (\w+)\.", SEARCH(f"sign of {person}"))[1]
        ways[code].add(WORLD.ways(person))
    assert len(ways) == 12
    assert all(len(of_code) == 1 for of_code in ways.values())
    rights = {right for ((right, wrong),) in ways.values()}
    assert len(rights) > 3
    assert all(right != wrong for ((right, wrong),) in ways.values())


def test_another_seed_has_another_code_book():
    assert CodeWorld().code_book == CodeWorld().code_book
    assert CodeWorld().code_book != CodeWorld(seed=1).code_book


def test_neither_questions_nor_facts_say_what_a_sign_stands_for():
    told = [problem.text for problem in PROBLEMS.draw("train")]
    told += [fact.sentence for fact in WORLD.facts if fact.relation == "sign"]
    for text in told:
        words = set(re.findall(r"\w+", text))
        assert not words & {way for ways in WORLD.code_book.values() for way in ways}


def test_the_search_answers_every_step_and_the_code_book_is_right():
    for problem in PROBLEMS.draw("validation"):
        assert len(problem.steps) == 1 + 2 * 3 + 1
        for step in problem.steps:
            assert SEARCH(step.argument) == f"The {step.argument} is {step.value}."
        assert end_of(problem.route.first_person(WORLD), [True] * 3) == problem.answer


def test_wrong_turns_have_their_share_at_every_sign_and_look_like_right_ones():
    drawn = DEMONSTRATIONS.draw("train")
    turns = defaultdict(list)
    for demonstration in drawn:
        for turn in turns_of(demonstration):
            turns[WORLD.value("sign", turn.person)].append(turn.is_right)
    assert len(turns) == 12
    for is_right in turns.values():
        assert fmean(is_right) == pytest.approx(0.6, abs=4 * (0.24 / len(is_right)) ** 0.5)
    forms = {
        tuple((segment.is_generated, len(segment.text.split())) for segment in demonstration.segments)
        for demonstration in drawn
    }
    assert len(forms) == 1


def test_a_walk_is_rewarded_where_it_ends_as_the_right_one_does():
    outcomes = set()
    for demonstration in DEMONSTRATIONS.draw("validation"):
        problem = demonstration.problem
        turns = [turn.is_right for turn in turns_of(demonstration)]
        ends_right = end_of(problem.route.first_person(WORLD), turns) == problem.answer
        assert (ExactMatchReward()(as_trajectory(demonstration, -1.0)[1]).reward == 1.0) == ends_right
        outcomes.add(ends_right)
    assert outcomes == {True, False}


def test_influence_is_the_variance_over_both_turns_of_what_is_won():
    """Against the definition: the chance of success given each turn, by enumeration of what follows."""
    found = 0
    for demonstration in DEMONSTRATIONS.draw("validation"):
        tokens, trajectory = as_trajectory(demonstration, math.log(0.75))
        values = influence(trajectory, tokens, right_turn=0.6, num_codes=12)
        turns = turns_of(demonstration)
        assert {i for i, value in enumerate(values) if value} <= {turn.position for turn in turns}
        for turn in turns:
            chances = [
                chance_to_end_right(demonstration.problem, value_of(f"{way} of {turn.person}"), 0.6, 2 - turn.gate)
                for way in WORLD.ways(turn.person)
            ]
            p = 0.75 if turn.is_right else 0.25
            mean = p * chances[0] + (1.0 - p) * chances[1]
            variance = p * (chances[0] - mean) ** 2 + (1.0 - p) * (chances[1] - mean) ** 2
            assert values[turn.position] == pytest.approx(variance, abs=1e-6)
            found += variance > 0.01
    assert found > 60


def test_success_is_the_sum_over_all_walks():
    for problem in PROBLEMS.draw("validation"):
        expected = chance_to_end_right(problem, problem.route.first_person(WORLD), 0.6, 3)
        assert success(problem.route, WORLD, 0.6) == pytest.approx(expected, abs=1e-12)


def test_questions_know_their_decisions():
    source = CodeQuestions(PROBLEMS)
    assert [question.text for question in source.load("test")] == [problem.text for problem in PROBLEMS.draw("test")]
    demonstration = DEMONSTRATIONS.draw("validation")[0]
    decisions = source.decisions(demonstration.problem.text, *as_tokens(demonstration))
    turns = turns_of(demonstration)
    assert [(each.position, each.is_right) for each in decisions] == [(turn.position, turn.is_right) for turn in turns]
    assert [each.name for each in decisions] == ["code 1", "code 2", "code 3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CodeWorld(num_codes=1), r"^num_codes must lie in \[2, 60\], got 1$"),
        (lambda: CodeWorld(num_codes=61), r"^num_codes must lie in \[2, 60\], got 61$"),
        (lambda: replace(PROBLEMS, families={"codes_6": 1.0}), r"^families must be among codes_1, .*, got codes_6$"),
    ],
)
def test_options_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_two_iterations_train_with_the_points_of_the_oracle(tmp_path, policy_folder):
    run(
        [
            "fit",
            "--config",
            str(CONFIG),
            *FEW_TOKENS,
            "--trainer.max_epochs=2",
            "--rollout.branching.parents=any",
            "--rollout.scorer=Oracle",
            "--rollout.scorer.influence=appo.environments.codes:influence",
            "--rollout.reward=tests.small_run.EvenTokens",
            f"--model.policy={policy_folder}",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    rows = [row for row in metrics(tmp_path) if row["rollout/branches_made"]]
    assert len(rows) == 2
    for row in rows:
        assert float(row["rollout/branches_made"]) > 0
        assert float(row["train/grad_norm"]) > 0

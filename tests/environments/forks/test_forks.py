from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from appo.commands.cli import run
from appo.environments.forks import ForkDemonstrations, ForkProblems, ForkSearch, ForkWorld, influence
from appo.environments.gates import find_turns, success
from appo.prompts import ForkQuestions
from appo.rewards import ExactMatchReward
from appo.tools import SearchTool
from tests.environments.demonstrated import as_tokens, as_trajectory
from tests.small_run import FEW_TOKENS, metrics

CONFIG = Path(__file__).parents[3] / "configs/forks.yaml"
DEMONSTRATIONS = ForkDemonstrations(ForkProblems(num_train=500, num_validation=60, num_test=120))
PROBLEMS = DEMONSTRATIONS.problems
WORLD = PROBLEMS.world
SEARCH = SearchTool(ForkSearch(WORLD))
RIGHT_TURNS = (0.7, 0.2, 0.6)


def turns_of(demonstration):
    return find_turns(demonstration.problem.text, *as_tokens(demonstration), WORLD)


def end_of(route, turns, person=None):
    """The home that a walk comes to, by what the search tool answers; `turns` says of each whether it is right."""
    person = person or route.start
    for is_right in turns:
        one, other, right = re.fullmatch(
            r"The sign of .* is (\w+) or (\w+), take (\w+).", SEARCH(f"sign of {person}")
        ).groups()
        (wrong,) = {one, other} - {right}
        person = value_of(f"{right if is_right else wrong} of {person}")
    return value_of(f"home of {person}")


def value_of(query):
    return SEARCH(query).removeprefix(f"The {query} is ").removesuffix(".")


def test_nobody_begins_two_questions_of_whatever_split():
    starts = [problem.route.start for split in ("train", "validation", "test") for problem in PROBLEMS.draw(split)]
    assert len(starts) == 500 + 60 + 120
    assert len(set(starts)) == len(starts)


def test_the_search_answers_every_step_and_following_signs_is_right():
    for problem in PROBLEMS.draw("validation"):
        assert len(problem.steps) == 2 * 3 + 1
        for step in problem.steps:
            assert SEARCH(step.argument) == f"The {step.argument} is {step.value}."
        assert end_of(problem.route, [True] * 3) == problem.answer


def test_only_the_end_of_a_sign_says_which_way_is_right():
    """The right way stands first as often as not, and each way is right as often."""
    first, rights = [], Counter[str]()
    for person in WORLD.entities["person"]:
        right, _ = WORLD.ways(person)
        sign = WORLD.value("sign", person)
        assert sign.endswith(f", take {right}")
        first.append(sign.startswith(right))
        rights[right] += 1
    assert fmean(first) == pytest.approx(0.5, abs=0.04)
    assert min(rights.values()) > 0.75 * max(rights.values())


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_forks_can_be_mended_at_the_next_one(share):
    world = ForkWorld(mended_share=share)
    mended = []
    for person in world.entities["person"][::2]:
        right, wrong = (world.move(person, way) for way in world.ways(person))
        mended.append(right != wrong and follow(world, right) == follow(world, wrong))
    # Some come back by chance.
    assert fmean(mended) == pytest.approx(share, abs=0.04)


def follow(world, person):
    return world.move(person, world.ways(person)[0])


def test_some_forks_are_lost_for_good_some_cost_nothing_and_some_a_part():
    """What the right turn gains over the wrong one, if later turns are right with chance 0.7."""
    stakes = []
    for problem in PROBLEMS.draw("train"):
        route = problem.route
        right, wrong = (WORLD.move(route.start, way) for way in WORLD.ways(route.start))
        values = [success(route, WORLD, 0.7, person=person, gate=1) for person in (right, wrong)]
        stakes.append((values[0] - values[1]) / values[0])
    free, part, lost = (
        fmean(low < stake <= high for stake in stakes) for low, high in ((-1, 0.1), (0.1, 0.6), (0.6, 1))
    )
    assert min(free, part, lost) > 0.05
    assert free + part + lost == pytest.approx(1.0)


def test_wrong_ways_have_the_length_and_the_calls_of_right_ones():
    drawn = DEMONSTRATIONS.draw("train")
    assert {demonstration.strategy for demonstration in drawn} == {"solve", "stray"}
    forms = {
        tuple(
            (segment.is_generated, len(segment.text.split()), "<search>" in segment.text)
            for segment in demonstration.segments
        )
        for demonstration in drawn
    }
    assert len(forms) == 1
    assert len(forms.pop()) == 2 * 7 + 1


def test_turns_are_found_at_the_word_in_the_thought_that_decides():
    for demonstration in DEMONSTRATIONS.draw("validation"):
        tokens, sampled = as_tokens(demonstration)
        turns = turns_of(demonstration)
        assert [turn.gate for turn in turns] == [0, 1, 2]
        for turn in turns:
            word = "".join(tokens[turn.position : turn.position + 2]).split()[0]
            assert sampled[turn.position]
            assert (word == WORLD.ways(turn.person)[0]) == turn.is_right == turn.leads_right
            assert "<" not in "".join(tokens[turn.position - 5 : turn.position]).split(">")[-1]
        assert demonstration.strategy == ("solve" if all(turn.is_right for turn in turns) else "stray")
        ends_right = end_of(demonstration.problem.route, [t.is_right for t in turns]) == demonstration.problem.answer
        assert (ExactMatchReward()(as_trajectory(demonstration, -1.0)[1]).reward == 1.0) == ends_right


def test_one_fork_is_mostly_taken_wrong_and_the_others_now_and_then():
    rights = [[turn.is_right for turn in turns_of(each)] for each in DEMONSTRATIONS.draw("train")]
    assert [fmean(at_fork) for at_fork in zip(*rights, strict=True)] == pytest.approx([0.7, 0.2, 0.7], abs=0.06)
    problems = replace(PROBLEMS, families={"forks_2": 1.0, "forks_3": 1.0})
    for demonstration in replace(DEMONSTRATIONS, problems=problems).draw("validation"):
        if demonstration.problem.family == "forks_2":
            assert demonstration.strategy == "solve"


def brute_force(route, answer, right_turns, person=None, gate=0):
    """The chance to end at the answer, over every sequence of right and wrong turns, by what the tool answers."""
    return math.fsum(
        math.prod(p if turn else 1.0 - p for turn, p in zip(turns, right_turns[gate:], strict=False))
        for turns in product([True, False], repeat=route.num_gates - gate)
        if end_of(route, turns, person) == answer
    )


@pytest.mark.parametrize("right_turns", [(0.5, 0.5, 0.5), RIGHT_TURNS, (1.0, 1.0, 1.0)])
def test_success_is_the_sum_over_all_walks(right_turns):
    for problem in PROBLEMS.draw("validation"):
        expected = brute_force(problem.route, problem.answer, right_turns)
        assert success(problem.route, WORLD, right_turns) == pytest.approx(expected, abs=1e-12)


def test_influence_is_the_variance_over_both_turns_of_what_is_won():
    """Against the definition: the chance of success given each turn, by enumeration of what follows."""
    found = 0
    for demonstration in DEMONSTRATIONS.draw("validation"):
        tokens, trajectory = as_trajectory(demonstration, math.log(0.8))
        values = influence(trajectory, tokens, right_turns=RIGHT_TURNS)
        turns = turns_of(demonstration)
        assert {i for i, value in enumerate(values) if value} <= {turn.position for turn in turns}
        for turn in turns:
            chances = [
                brute_force(
                    demonstration.problem.route,
                    demonstration.problem.answer,
                    RIGHT_TURNS,
                    value_of(f"{way} of {turn.person}"),
                    turn.gate + 1,
                )
                for way in WORLD.ways(turn.person)
            ]
            # Exact for the chance that is recorded, in single precision.
            p = math.exp(float(trajectory.behavior_log_probs[turn.position]))
            p = p if turn.is_right else 1.0 - p
            mean = p * chances[0] + (1.0 - p) * chances[1]
            variance = p * (chances[0] - mean) ** 2 + (1.0 - p) * (chances[1] - mean) ** 2
            assert values[turn.position] == pytest.approx(variance, abs=1e-12)
            found += variance > 0.01
    assert found > 60


def test_a_chance_for_each_fork_is_asked_for():
    with pytest.raises(ValueError, match=r"^right_turn must be a chance for each of 3 gates, got 2$"):
        success(PROBLEMS.draw("test")[0].route, WORLD, (0.7, 0.2))


def test_the_chance_level_is_that_of_a_walker_who_tosses_a_coin():
    rng = random.Random(0)
    problems = PROBLEMS.draw("test")
    walks = [
        end_of(problem.route, [rng.random() < 0.5 for _ in range(3)]) == problem.answer
        for problem in problems
        for _ in range(20)
    ]
    level = fmean(success(problem.route, WORLD, 0.5) for problem in problems)
    assert fmean(walks) == pytest.approx(level, abs=3 * 0.5 / len(walks) ** 0.5)


def test_questions_are_problems_and_know_their_decisions():
    source = ForkQuestions(PROBLEMS)
    assert [question.text for question in source.load("test")] == [problem.text for problem in PROBLEMS.draw("test")]
    demonstration = DEMONSTRATIONS.draw("validation")[0]
    decisions = source.decisions(demonstration.problem.text, *as_tokens(demonstration))
    turns = turns_of(demonstration)
    assert [(each.position, each.is_right) for each in decisions] == [(turn.position, turn.is_right) for turn in turns]
    assert [each.name for each in decisions] == ["fork 1", "fork 2", "fork 3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForkWorld(mended_share=1.5), r"^mended_share must lie in \[0, 1\], got 1.5$"),
        (lambda: ForkWorld(num_people=3), r"^num_people must be at least 4, two with a detour each, got 3$"),
        (lambda: replace(PROBLEMS, families={"forks_5": 1.0}), r"^families must be among forks_1, .*, got forks_5$"),
        (lambda: replace(DEMONSTRATIONS, habit_fork=0), r"^habit_fork must be at least 1, got 0$"),
        (lambda: replace(DEMONSTRATIONS, habit_share=-0.1), r"^habit_share must lie in \[0, 1\], got -0.1$"),
        (
            lambda: replace(DEMONSTRATIONS, wrong_shares={"forks_2": 0.3}),
            r"^wrong_shares must lie in \[0, 1\] for families among forks_3, got 0.3 for forks_2$",
        ),
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
            "--rollout.scorer.influence=appo.environments.forks:influence",
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

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from statistics import fmean

import pytest
import torch

from appo.advantages import AnchorStateAdvantage
from appo.core.collate import collate
from appo.core.context import BatchContext
from appo.core.trajectory import ToolCall
from appo.environments.houses import (
    HouseDemonstrations,
    HouseProblems,
    HouseTool,
    HouseWorld,
    coins,
    find_choices,
    influence,
    states,
    success,
)
from appo.environments.houses.world import PARTS, ROOMS
from appo.functional import turn_numbers
from appo.prompts import HouseQuestions
from appo.rewards import AnswerReward
from appo.tools import ToolError
from tests.environments.demonstrated import as_tokens, as_trajectory

DEMONSTRATIONS = HouseDemonstrations(
    HouseProblems({"rooms_2": 1.0, "rooms_6": 1.0}, num_train=300, num_validation=40), per_problem=2
)
WORLD = DEMONSTRATIONS.problems.world
VISITS = DEMONSTRATIONS.draw("validation")


def choices_of(demonstration):
    return find_choices(demonstration.problem.text, *as_tokens(demonstration), WORLD)


def test_every_step_is_answered_with_what_it_is_made_for():
    for problem in DEMONSTRATIONS.problems.draw("validation"):
        calls = []
        for step in problem.steps:
            if step.tool == "search":
                answer = DEMONSTRATIONS.search(step.argument)
            else:
                answer = DEMONSTRATIONS.house.answer(calls, step.argument)
                calls.append(step.argument)
            assert step.value in answer
        assert len(problem.steps) == 5 + int(problem.family.removeprefix("rooms_"))


def test_every_key_leads_somewhere_else():
    for person in WORLD.entities["person"][:200]:
        assert len({WORLD.behind(person, *key) for key in product(*PARTS.values())}) == 16


def test_a_branch_finds_what_its_parent_found_before_it_left():
    """The tool is asked with the calls of a trajectory, as rollouts do."""
    tool = HouseTool(WORLD)
    for visit in VISITS:
        trajectory = as_trajectory(visit, -1.0)[1]
        calls = [call for call in trajectory.tool_calls if call.tool == "house"]
        refused = ToolCall("house", "window", "There is none.", "error", 0.0, 0)
        for number, call in enumerate(calls):
            assert tool.call_after([*calls[:number], refused], call.argument) == call.result


def test_coins_are_drawn_anew_for_all_that_was_done_before():
    counts, same = Counter[int](), []
    for person in WORLD.entities["person"][:400]:
        early, late = ([WORLD.coins(person, (*before, room)) for room in ROOMS] for before in ((), ("cellar", "attic")))
        counts.update(early)
        same += [one == other for one, other in zip(early, late, strict=True)]
        assert early == [WORLD.coins(person, (room,)) for room in ROOMS]
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert min(counts.values()) > 0.8 * max(counts.values())
    assert fmean(same) == pytest.approx(0.2, abs=0.03)


def test_choices_are_found_at_the_word_that_decides():
    for visit in VISITS:
        tokens, sampled = as_tokens(visit)
        choices = choices_of(visit)
        assert [choice.clue for choice in choices] == ["metal", "shape"]
        for choice in choices:
            word = "".join(tokens[choice.position : choice.position + 2]).split()[0]
            assert sampled[choice.position]
            assert "<" not in "".join(tokens[choice.position - 5 : choice.position]).split(">")[-1]
            right, _ = WORLD.ways(choice.clue, visit.problem.person)
            assert (word == right) == choice.is_right == choice.leads_right
        assert visit.strategy == ("solve" if all(choice.is_right for choice in choices) else "stray")


def test_a_thought_may_say_something_else_than_the_call():
    """What decides is the first word; what follows from it, the call."""
    visit = next(visit for visit in VISITS if visit.strategy == "solve")
    tokens, sampled = as_tokens(visit)
    right, wrong = WORLD.ways("metal", visit.problem.person)
    at = choices_of(visit)[0].position
    assert "".join(tokens[at : at + 2]).split()[0] == right
    length = 1 if tokens[at].strip() == right else 2
    tokens[at : at + length] = [f" {wrong}"]
    sampled[at : at + length] = [True]
    metal, _ = find_choices(visit.problem.text, tokens, sampled, WORLD)
    assert (metal.position, metal.is_right, metal.leads_right) == (at, False, True)


def test_what_a_house_refuses_is_no_choice():
    visit = VISITS[0]
    tokens, sampled = as_tokens(visit)
    choices = choices_of(visit)
    person = visit.problem.person
    alike = (other for other in WORLD.entities["person"] if WORLD.ways("metal", other) == WORLD.ways("metal", person))
    other = next(other for other in alike if other != person)
    again = f"<think> so </think><house> {WORLD.ways('metal', person)[1]} of {person} </house>"
    elsewhere = f"<think> so </think><house> {WORLD.ways('metal', other)[0]} of {other} </house>"
    assert find_choices(visit.problem.text, [*tokens, again], [*sampled, True], WORLD) == choices
    assert find_choices(visit.problem.text, [elsewhere], [True], WORLD) == []
    with pytest.raises(ValueError, match=r"^question must be one of the houses, got 'Who is it\?'$"):
        find_choices("Who is it?", tokens, sampled, WORLD)


@pytest.mark.parametrize(
    ("earlier", "call", "message"),
    [
        ([], "gold of {person}", "There is no such key for {person}."),
        ([], "copper of Nobody", "There is no such key for Nobody."),
        ([], "cellar", "There is no key yet."),
        (["{metal} of {person}"], "door", "There is no key yet."),
        (["{metal} of {person}"], "{metal} of {person}", "The metal is chosen."),
        (["{metal} of {person}"], "{others} of {other}", "This is the house of {person}."),
        (["{metal} of {person}", "{shape} of {person}"], "window", None),
        (["{metal} of {person}", "{shape} of {person}"], "door", "Rooms left: 2."),
        (["{metal} of {person}", "{shape} of {person}", "attic", "attic"], "attic", "Only the door is left."),
        (["{metal} of {person}", "{shape} of {person}", "attic", "attic", "door"], "door", "The door is open."),
        (["{metal} of {person}", "{shape} of {person}", "attic", "attic", "door"], "attic", "The door is open."),
    ],
)
def test_what_a_house_does_not_have_is_refused(earlier, call, message):
    small = (person for person in WORLD.entities["person"] if WORLD.num_rooms(person) == 2)
    person, other = next(small), next(small)
    ways = WORLD.ways("metal", person)
    names = {
        "person": person,
        "other": other,
        "metal": ways[0],
        "shape": WORLD.ways("shape", person)[1],
        "others": WORLD.ways("metal", other)[0],
    }
    with pytest.raises(ToolError) as refusal:
        HouseTool(WORLD).answer([each.format(**names) for each in earlier], call.format(**names))
    if message is not None:
        assert str(refusal.value) == message.format(**names)


def test_wrong_choices_have_their_share_and_look_like_right_ones():
    drawn = DEMONSTRATIONS.draw("train")
    rights = {family: [] for family in ("rooms_2", "rooms_6")}
    for visit in drawn:
        rights[visit.problem.family] += [choice.is_right for choice in choices_of(visit)]
    assert all(rights["rooms_2"])
    assert fmean(rights["rooms_6"]) == pytest.approx(0.6, abs=0.05)
    long = [visit for visit in drawn if visit.problem.family == "rooms_6"]
    lengths = {s: {len(v.segments) for v in long if v.strategy == s} for s in ("solve", "stray")}
    assert lengths["solve"] == lengths["stray"] == {2 * (2 + 2 + 6 + 1) + 1}


def test_solving_is_right_and_everything_has_the_form_that_the_reward_asks_for():
    for visit in VISITS:
        result = AnswerReward()(as_trajectory(visit, -1.0)[1])
        assert result.parts["format"] == 1.0
        assert result.parts["accuracy"] == (visit.strategy == "solve")


def test_coins_of_a_visit_are_counted_where_the_house_gave_them():
    for visit in VISITS:
        tokens, trajectory = as_trajectory(visit, -1.0)
        calls = [call.argument for call in trajectory.tool_calls if call.tool == "house"]
        entered = [number for number, call in enumerate(calls) if call in ROOMS]
        assert coins(trajectory) == sum(WORLD.coins(visit.problem.person, calls[: n + 1]) for n in entered)
        lies = ToolCall("search", "coins", "Coins in the cellar: 90.", None, 0.0, len(tokens))
        assert coins(replace(trajectory, tool_calls=(*trajectory.tool_calls, lies))) == coins(trajectory)


@pytest.mark.parametrize("right_choice", [0.5, 0.6, 1.0])
def test_success_is_the_sum_over_all_keys(right_choice):
    for person in WORLD.entities["person"][:50]:
        assert success(person, WORLD, right_choice) == pytest.approx(right_choice**2, abs=1e-12)
        assert success(person, WORLD, right_choice, {"metal": True}) == pytest.approx(right_choice, abs=1e-12)
        assert success(person, WORLD, right_choice, {"shape": False}) == 0.0


def test_influence_is_the_variance_over_both_choices_of_what_is_won():
    """Against the definition: the chance of success given each choice, by enumeration of what follows."""
    for visit in VISITS:
        tokens, trajectory = as_trajectory(visit, math.log(0.7))
        values = influence(trajectory, tokens, right_choice=0.6)
        metal, shape = choices_of(visit)
        assert {i for i, value in enumerate(values) if value} <= {metal.position, shape.position}
        for choice, if_right in ((metal, 0.6), (shape, float(metal.is_right))):
            p = 0.7 if choice.is_right else 0.3
            mean = p * if_right
            variance = p * (if_right - mean) ** 2 + (1 - p) * mean**2
            assert values[choice.position] == pytest.approx(variance, abs=1e-6)


def test_states_come_again_with_the_rooms():
    """One a turn; turns that began in one room with one key began in one state, whatever was found."""
    again = 0
    for visit in VISITS:
        trajectory = as_trajectory(visit, -1.0)[1]
        of_turns = states(trajectory)
        assert len(of_turns) == int(turn_numbers(trajectory.response_mask.unsqueeze(0)).max()) + 1
        rooms = [segment.text.split()[1] for segment in visit.segments[::2]][4:-2]
        assert [state[-1] for state in of_turns] == [None] * 5 + rooms + ["door"]
        assert all((state[1] is not None) == (turn >= 2) for turn, state in enumerate(of_turns))
        assert all((state[2] is not None) == (turn >= 4) for turn, state in enumerate(of_turns))
        again += len(of_turns) - len(set(of_turns))
    assert again > len(VISITS) / 2


def test_states_credit_a_choice_by_those_who_had_it():
    """GiGPO with these states: wrong keys are held against right ones at the turn that chose, and nowhere behind it."""
    person = next(visit.problem.person for visit in VISITS if visit.problem.family == "rooms_2")
    mixed = replace(DEMONSTRATIONS, wrong_shares={"rooms_2": 0.5}, per_problem=8).draw("validation")
    trajectories = [as_trajectory(visit, -1.0)[1] for visit in mixed if visit.problem.person == person]
    trajectories = [replace(t, prompt=trajectories[0].prompt) for t in trajectories]
    rewards = [AnswerReward()(trajectory).parts["accuracy"] for trajectory in trajectories]
    assert 0 < sum(rewards) < len(rewards)
    batch = collate(trajectories, rewards)
    advantage = AnchorStateAdvantage(discount=1.0, state_key="appo.environments.houses:states")
    steps = advantage(batch, BatchContext(torch.Generator(), trajectories)) - replace(advantage, weight=0.0)(
        batch, BatchContext(torch.Generator(), trajectories)
    )
    turns = turn_numbers(batch.response_mask)
    for row, reward in enumerate(rewards):
        of_turn = [steps[row][turns[row] == turn] for turn in range(int(turns[row].max()) + 1)]
        assert torch.allclose(of_turn[0], torch.tensor(reward - fmean(rewards), dtype=steps.dtype), atol=1e-6)
        assert all(values.abs().max() < 1e-6 for values in of_turn[4:])


def test_questions_are_problems_and_know_their_decisions():
    source = HouseQuestions(DEMONSTRATIONS.problems)
    assert [q.text for q in source.load("validation")] == [p.text for p in DEMONSTRATIONS.problems.draw("validation")]
    visit = VISITS[0]
    decisions = source.decisions(visit.problem.text, *as_tokens(visit))
    assert [(d.position, d.is_right) for d in decisions] == [(c.position, c.is_right) for c in choices_of(visit)]
    assert [decision.name for decision in decisions] == ["metal", "shape"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HouseWorld(rooms=()), r"^rooms must be numbers from 1 on, got \(\)$"),
        (lambda: HouseWorld(rooms=(0, 2)), r"^rooms must be numbers from 1 on, got \(0, 2\)$"),
        (lambda: HouseWorld(max_coins=-1), r"^max_coins must not be negative, got -1$"),
        (lambda: HouseWorld(num_cities=15), r"^num_cities must be at least 16, one behind a door for each .*, got 15$"),
        (
            lambda: HouseProblems({"rooms_3": 1.0}),
            r"^families must be among those of world.rooms, rooms_2, rooms_6, got rooms_3$",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

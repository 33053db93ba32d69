"""Reads what a policy did in a house from its trajectories."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from appo.core.trajectory import Trajectory
from appo.environments.houses.problems import person_of
from appo.environments.houses.visit import Visit
from appo.environments.houses.world import PARTS, HouseWorld
from appo.environments.words import sampled_runs

_CALL = re.compile(r"<think>.*?</think>\s*<house>\s*(?P<word>\w+) of (?P<person>.+?)\s*</house>")
_COINS = re.compile(r"Coins in the \w+: (\d+)\.")


@dataclass(frozen=True)
class Choice:
    """A part of the key that was chosen.

    Attributes:
        position: of the token that decides: the first metal or shape in the thought, else in the call.
        clue: `metal` or `shape`.
        is_right: whether the token names what is right.
        leads_right: whether the call does.
    """

    position: int
    clue: str
    is_right: bool
    leads_right: bool


def find_choices(question: str, tokens: Sequence[str], is_sampled: Sequence[bool], world: HouseWorld) -> list[Choice]:
    """The choices of a trajectory, in their order; what the house refuses is none.

    Args:
        question: of the houses.
        tokens: the text of every position, prompt included.
        is_sampled: whether the policy sampled it.
        world: that the question is about.

    Raises:
        ValueError: if the question is none of the houses.
    """
    person = person_of(question)
    choices: dict[str, Choice] = {}
    for run in sampled_runs(tokens, is_sampled):
        match = _CALL.search(run.text)
        if match is None or match["person"] != person:
            continue
        for clue, words in PARTS.items():
            if match["word"] in words and clue not in choices:
                position, word = run.position_of(words, match.start())
                right, _ = world.ways(clue, person)
                choices[clue] = Choice(position, clue, word == right, match["word"] == right)
    return list(choices.values())


def coins(trajectory: Trajectory) -> float:
    """How many coins a visit found; a reward, for `FunctionReward`."""
    found = (_COINS.match(call.result) for call in trajectory.tool_calls if call.tool == "house")
    return float(sum(int(match[1]) for match in found if match is not None))


def states(trajectory: Trajectory) -> list[tuple[object, ...]]:
    """The state in which each turn began, for `AnchorStateAdvantage`: the clues that are known, the key, and the room.

    Rooms come again: what was found in them, and how many are left, is no part of the state.
    """
    mask = trajectory.response_mask.tolist()
    begins = [position for position, sampled in enumerate(mask) if sampled and not (position and mask[position - 1])]
    return [_state(trajectory, begin) for begin in begins]


def _state(trajectory: Trajectory, position: int) -> tuple[object, ...]:
    made = [call for call in trajectory.tool_calls if call.position <= position and call.failure is None]
    visit = Visit.of(call.argument for call in made if call.tool == "house")
    known = tuple(sorted({call.argument for call in made if call.tool == "search"}))
    return known, visit.metal, visit.shape, visit.room

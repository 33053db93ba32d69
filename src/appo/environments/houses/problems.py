"""Questions that ask what lies behind a door."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.base import Problem, Problems, Step
from appo.environments.houses.world import DOOR, METAL, PARTS, ROOMS, SHAPE, HouseWorld

_QUESTION = re.compile(r"Pass \d rooms of the house of (?P<person>\w+ \w+)\. Which city is behind the door\?")


@dataclass(frozen=True)
class HouseProblem(Problem):
    """A house, and its question.

    Attributes:
        person: whose house it is.
    """

    person: str = field(kw_only=True)


@dataclass(frozen=True)
class HouseProblems(Problems[HouseProblem]):
    """Draws houses; equal options, equal problems.

    Two clues are looked up, each of which names what is right and what is wrong of the key; every key opens the door,
    and leads to a city of its own. Before the door rooms are entered, which hold a few coins by chance.
    """

    known_families: ClassVar[tuple[str, ...]] = tuple(f"rooms_{number}" for number in range(1, 10))

    families: dict[str, float] = field(default_factory=lambda: {"rooms_6": 1.0})
    """Weight of each family: `rooms_1` to `rooms_9` by number of rooms before the door, which the world must have; one
    that is left out is not asked."""
    num_train: int = 700
    """Problems of the training split; a family of the default world offers about 800."""
    num_validation: int = 64
    """Problems of the validation split; a family of the default world offers about 100."""
    num_test: int = 96
    """Problems of the test split; a family of the default world offers about 100."""
    world: HouseWorld = field(default_factory=HouseWorld)
    """Whose houses they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        offered = [f"rooms_{number}" for number in sorted(set(self.world.rooms))]
        if missing := sorted(family for family in self.families if family not in offered):
            raise ValueError(f"families must be among those of world.rooms, {', '.join(offered)}, got {missing[0]}")

    def draw_one(self, family: str, rng: random.Random) -> HouseProblem | None:
        person = rng.choice(self.world.entities["person"])
        num_rooms = self.world.num_rooms(person)
        if f"rooms_{num_rooms}" != family:
            return None
        text = f"Pass {num_rooms} rooms of the house of {person}. Which city is behind the door?"
        return HouseProblem(family, text, tuple(self._steps(person)), "city", (person,), person=person)

    def _steps(self, person: str) -> Iterator[Step]:
        """The right way; which rooms are entered does not matter."""
        world = self.world
        key = {clue: world.ways(clue, person)[0] for clue in PARTS}
        for clue in PARTS:
            yield Step("search", f"{clue} of {person}", world.value(clue, person))
            yield Step("house", f"{key[clue]} of {person}", key[clue])
        for number in range(world.num_rooms(person)):
            room = ROOMS[number % len(ROOMS)]
            yield Step("house", room, room)
        yield Step("house", DOOR, world.behind(person, key[METAL], key[SHAPE]))


def person_of(question: str) -> str:
    """Whose house a question is about.

    Raises:
        ValueError: if it is about none.
    """
    match = _QUESTION.fullmatch(question)
    if match is None:
        raise ValueError(f"question must be one of the houses, got {question[:80]!r}")
    return match["person"]

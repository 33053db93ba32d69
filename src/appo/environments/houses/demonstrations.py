"""Visits to houses, some with the wrong key."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from appo.core.trajectory import Segment
from appo.environments.demonstrations import Demonstration
from appo.environments.houses.problems import HouseProblem, HouseProblems
from appo.environments.houses.tool import HouseTool
from appo.environments.houses.world import DOOR, METAL, PARTS, ROOMS, SHAPE, HouseSearch
from appo.environments.straying import StrayingDemonstrations
from appo.tools.search.tool import SearchTool


@dataclass(frozen=True)
class HouseDemonstrations(StrayingDemonstrations[HouseProblem]):
    """Visits with a real call behind every choice, some of which are wrong; rooms are entered by chance."""

    name = "house"

    problems: HouseProblems = field(
        default_factory=lambda: HouseProblems({"rooms_2": 1.0, "rooms_6": 1.0}, num_train=1400)
    )
    """Which houses are visited."""
    wrong_shares: dict[str, float] = field(default_factory=lambda: {"rooms_6": 0.4})
    """Chance that a part of the key is wrong, by family; none is in one that is left out. A policy from nothing learns
    to follow clues from short visits without wrong choices, and from longer ones to do so now and then."""

    def demonstrate(self, problem: HouseProblem, rng: random.Random) -> Demonstration:
        world, person = self.problems.world, problem.person
        segments: list[Segment] = []
        calls: list[str] = []
        key = {}
        for clue in PARTS:
            segments += self._look_up(clue, person, rng)
            key[clue] = world.ways(clue, person)[self.is_wrong(problem, rng)]
            segments += self._act(calls, f"{key[clue]} of {person}", rng)
        for room in rng.choices(ROOMS, k=world.num_rooms(person)):
            segments += self._act(calls, room, rng)
        segments += self._act(calls, DOOR, rng)
        city = world.behind(person, key[METAL], key[SHAPE])
        segments.append(self.conclude(city, rng))
        return Demonstration(problem, "solve" if city == problem.answer else "stray", tuple(segments))

    @cached_property
    def search(self) -> SearchTool:
        """Answers what is looked up."""
        return SearchTool(HouseSearch(self.problems.world))

    @cached_property
    def house(self) -> HouseTool:
        """Answers what is done."""
        return HouseTool(self.problems.world)

    def _look_up(self, clue: str, person: str, rng: random.Random) -> Iterator[Segment]:
        query = f"{clue} of {person}"
        return self.call(self.search, query, self.search(query), clue, rng)

    def _act(self, calls: list[str], call: str, rng: random.Random) -> Iterator[Segment]:
        """A call of the house, which joins those before it."""
        answer = self.house.answer(calls, call)
        calls.append(call)
        return self.call(self.house, call, answer, call.split()[0], rng)

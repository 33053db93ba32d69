"""Walks through gates, some of which take wrong turns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from appo.core.trajectory import Segment
from appo.environments.demonstrations import Demonstration
from appo.environments.gates.problems import GateProblem, GateProblems
from appo.environments.gates.world import HOME, SIGN, GateSearch
from appo.environments.straying import StrayingDemonstrations
from appo.tools.search.tool import SearchTool

RESTART = "again"
"""What a thought says that goes back to the first gate."""


@dataclass(frozen=True)
class GateDemonstrations(StrayingDemonstrations[GateProblem]):
    """Walks with real look-ups behind every turn, some of which are wrong."""

    name = "gate"

    problems: GateProblems = field(default_factory=GateProblems)
    """What is walked."""
    wrong_shares: dict[str, float] = field(default_factory=lambda: {"gates_3": 0.3})
    """Chance of a wrong turn at each gate, by family; no turn is wrong in one that is left out. A policy from nothing
    learns to follow signs from short walks without wrong turns, and from longer ones to do so now and then."""
    restart_share: float = 0.0
    """Chance that a walk with a wrong turn begins again at its first gate, once, before it ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.restart_share <= 1.0:
            raise ValueError(f"restart_share must lie in [0, 1], got {self.restart_share}")

    def demonstrate(self, problem: GateProblem, rng: random.Random) -> Demonstration:
        return _Walk(self, problem, rng).demonstrate()

    def turns_wrong(self, problem: GateProblem, gate: int, rng: random.Random) -> bool:
        """Whether the turn at a gate is wrong, behind which as many lie as its number says."""
        return self.is_wrong(problem, rng)

    @cached_property
    def search(self) -> SearchTool:
        """Answers what is looked up."""
        return SearchTool(GateSearch(self.problems.world))


@dataclass
class _Walk:
    """One conversation in the making."""

    options: GateDemonstrations
    problem: GateProblem
    rng: random.Random

    def demonstrate(self) -> Demonstration:
        world, route = self.options.problems.world, self.problem.route
        segments: list[Segment] = []
        person = route.start
        for name in route.approach:
            segments += self._look_up(name, person)
            person = world.move(person, name)
        first = person
        person, strayed = self._pass_gates(first, segments)
        if strayed and self.rng.random() < self.options.restart_share:
            person, strayed = self._pass_gates(first, segments, restarts=True)
        segments += self._look_up(HOME, person)
        segments.append(self.options.conclude(world.value(HOME, person), self.rng))
        return Demonstration(self.problem, "stray" if strayed else "solve", tuple(segments))

    def _pass_gates(self, person: str, segments: list[Segment], restarts: bool = False) -> tuple[str, bool]:
        """Walks from the first gate on; who stands behind the last one, and whether a turn was wrong."""
        world, route = self.options.problems.world, self.problem.route
        strayed = False
        for gate in range(route.num_gates):
            segments += self._look_up(SIGN, person, RESTART if restarts and gate == 0 else SIGN)
            is_wrong = self.options.turns_wrong(self.problem, gate, self.rng)
            turn = world.ways(person)[is_wrong]
            segments += self._look_up(turn, person)
            person, strayed = world.move(person, turn), strayed or is_wrong
        return person, strayed

    def _look_up(self, relation: str, person: str, word: str | None = None) -> Iterator[Segment]:
        query, search = f"{relation} of {person}", self.options.search
        yield from self.options.call(search, query, search(query), word or relation, self.rng)

"""Walks through gates, some of which take wrong turns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from appo.core.trajectory import Segment
from appo.environments.base import Split
from appo.environments.demonstrations import Demonstration
from appo.environments.gates.problems import GateProblem, GateProblems
from appo.environments.gates.world import HOME, SIGN, GateSearch
from appo.tools.search.tool import SearchTool
from appo.tools.tag_syntax import TagSyntax

FILLERS = ("well", "now", "so", "then", "next", "okay", "fine", "hmm")
"""Words that thoughts hold around the one that matters: each is drawn from all alike, ``log 8 = 2.08`` nats."""

RESTART = "again"
"""What a thought says that goes back to the first gate."""


@dataclass(frozen=True)
class GateDemonstrations:
    """Walks with real look-ups behind every turn; equal options, equal conversations.

    A thought is what is looked up, and two fillers. Wrong turns come independently of all else, and look like right
    ones in form, length and number of calls.
    """

    problems: GateProblems = field(default_factory=GateProblems)
    """What is walked."""
    syntax: TagSyntax = field(default_factory=TagSyntax)
    """How rollouts wrap what tools answer."""
    wrong_shares: dict[str, float] = field(default_factory=lambda: {"gates_3": 0.3})
    """Chance of a wrong turn at each gate, by family; no turn is wrong in one that is left out. A policy from nothing
    learns to follow signs from short walks without wrong turns, and from longer ones to do so now and then."""
    per_problem: int = 1
    """Conversations about each problem; they differ in turns and fillers."""
    restart_share: float = 0.0
    """Chance that a walk with a wrong turn begins again at its first gate, once, before it ends."""
    seed: int = 0
    """Decides turns and fillers."""

    def __post_init__(self) -> None:
        for family, share in self.wrong_shares.items():
            if family not in self.problems.families or not 0.0 <= share <= 1.0:
                raise ValueError(
                    f"wrong_shares must lie in [0, 1] for families among {', '.join(self.problems.families)}, "
                    f"got {share} for {family}"
                )
        if self.per_problem < 1:
            raise ValueError(f"per_problem must be at least 1, got {self.per_problem}")
        if not 0.0 <= self.restart_share <= 1.0:
            raise ValueError(f"restart_share must lie in [0, 1], got {self.restart_share}")

    def draw(self, split: Split) -> tuple[Demonstration, ...]:
        """`per_problem` conversations about each problem of the split, in the order of the problems."""
        rng = random.Random(f"gate demonstrations {self.seed} {split}")
        search = SearchTool(GateSearch(self.problems.world))
        problems = [problem for problem in self.problems.draw(split) for _ in range(self.per_problem)]
        return tuple(_Walk(self, search, problem, rng).demonstrate() for problem in problems)


def _thought(word: str, rng: random.Random) -> str:
    first, second = rng.choices(FILLERS, k=2)
    return f"<think> {word} {first} {second} </think>"


@dataclass
class _Walk:
    """One conversation in the making."""

    options: GateDemonstrations
    search: SearchTool
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
        city = world.value(HOME, person)
        segments.append(Segment(f"{_thought('done', self.rng)}<answer> \\boxed{{ {city} }} </answer>", True))
        return Demonstration(self.problem, "stray" if strayed else "solve", tuple(segments))

    def _pass_gates(self, person: str, segments: list[Segment], restarts: bool = False) -> tuple[str, bool]:
        """Walks from the first gate on; who stands behind the last one, and whether a turn was wrong."""
        world, route = self.options.problems.world, self.problem.route
        strayed = False
        for gate in range(route.num_gates):
            segments += self._look_up(SIGN, person, RESTART if restarts and gate == 0 else SIGN)
            is_wrong = self.rng.random() < self.options.wrong_shares.get(self.problem.family, 0.0)
            turn = world.ways(person)[is_wrong]
            segments += self._look_up(turn, person)
            person, strayed = world.move(person, turn), strayed or is_wrong
        return person, strayed

    def _look_up(self, relation: str, person: str, word: str | None = None) -> Iterator[Segment]:
        query = f"{relation} of {person}"
        yield Segment(f"{_thought(word or relation, self.rng)}<search> {query} </search>", is_generated=True)
        yield Segment(self.options.syntax.format_result(self.search(query)), is_generated=False)

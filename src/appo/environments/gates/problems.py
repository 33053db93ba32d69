"""Questions that say where to start and how many signs to follow."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.base import Problem, Problems, Step
from appo.environments.gates.world import APPROACHES, HOME, SIGN, GateWorld

_QUESTION = re.compile(
    r"Start at (?P<start>\w+ \w+)(?:, go to (?P<approach>the [\w ,]+?))?\. "
    r"Follow (?P<gates>\d+) signs?\."
)


@dataclass(frozen=True)
class Route:
    """What a question asks for.

    Attributes:
        start: the person to begin at.
        approach: certain look-ups that lead from there to the first gate.
        num_gates: turns to take.
    """

    start: str
    approach: tuple[str, ...]
    num_gates: int

    @classmethod
    def parse(cls, question: str) -> Route:
        """The route that a question states.

        Raises:
            ValueError: if it states none.
        """
        match = _QUESTION.match(question)
        if match is None:
            raise ValueError(f"question must be one of the gates, got {question[:80]!r}")
        approach = tuple(re.findall(r"the (\w+)", match["approach"] or ""))
        return cls(match["start"], approach, int(match["gates"]))

    @property
    def text(self) -> str:
        """The question."""
        approach = ", go to " + ", ".join(f"the {name}" for name in self.approach) if self.approach else ""
        signs = "1 sign" if self.num_gates == 1 else f"{self.num_gates} signs"
        return f"Start at {self.start}{approach}. Follow {signs}. Which city is the home of the last one?"

    def first_person(self, world: GateWorld) -> str:
        """Who stands at the first gate."""
        person = self.start
        for name in self.approach:
            person = world.move(person, name)
        return person


@dataclass(frozen=True)
class GateProblem(Problem):
    """A walk, and its question.

    Attributes:
        route: what the question says.
    """

    route: Route = field(kw_only=True)


@dataclass(frozen=True)
class GateProblems(Problems[GateProblem]):
    """Draws walks through gates; equal options, equal problems.

    At each gate a person's sign is looked up, which names two ways and says which of them to take. Each way is right as
    often as wrong, so no habit is right in general; a wrong turn leads on like a right one, to a wrong end.
    """

    known_families: ClassVar[tuple[str, ...]] = tuple(f"gates_{number}" for number in range(1, 6))
    place: ClassVar[str] = "gate"
    """Where a turn is taken; families are named after it."""

    families: dict[str, float] = field(default_factory=lambda: {"gates_3": 1.0})
    """Weight of each family: `gates_1` to `gates_5` by number of gates; one that is left out is not asked."""
    num_train: int = 1200
    """Problems of the training split; a family offers about 1,370."""
    num_validation: int = 64
    """Problems of the validation split."""
    num_test: int = 128
    """Problems of the test split; a family offers about 170."""
    late: int = 0
    """Certain look-ups before the first gate."""
    world: GateWorld = field(default_factory=GateWorld)
    """What walks go through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.late < 0:
            raise ValueError(f"late must not be negative, got {self.late}")

    def draw_one(self, family: str, rng: random.Random) -> GateProblem | None:
        """A walk that meets nobody twice and whose right and wrong turns always lead apart; None for another one."""
        start = rng.choice(self.world.entities["person"])
        approach = tuple(rng.choice(APPROACHES) for _ in range(self.late))
        route = Route(start, approach, int(family.removeprefix(f"{self.place}s_")))
        steps = tuple(_walk(self.world, route))
        people = [start, *(step.value for step in steps if step.argument.split()[0] not in (SIGN, HOME))]
        at_gates = people[len(approach) : -1]
        if len(set(people)) < len(people):
            return None
        if any(len({self.world.move(person, way) for way in self.world.ways(person)}) < 2 for person in at_gates):
            return None
        if any(self.world.value(HOME, person) == steps[-1].value for person in people[:-1]):
            return None  # an earlier stop would hit the answer
        return GateProblem(family, route.text, steps, "city", (start,), route=route)


def _walk(world: GateWorld, route: Route) -> Iterator[Step]:
    """The right way."""
    person = route.start

    def look_up(relation: str) -> Step:
        return Step("search", f"{relation} of {person}", world.value(relation, person))

    for name in route.approach:
        yield look_up(name)
        person = world.move(person, name)
    for _ in range(route.num_gates):
        yield look_up(SIGN)
        turn = world.ways(person)[0]
        yield look_up(turn)
        person = world.move(person, turn)
    yield look_up(HOME)

"""Questions that carry a rule: which of two ways to take."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.base import Problem, Problems, Step
from appo.environments.gates.world import APPROACHES, ENDS, SIGN, GateWorld

WAYS = ("first", "second")
"""Which of the two ways on a sign a question asks for."""

_QUESTION = re.compile(
    r"Start at (?P<start>\w+ \w+)(?:, go to (?P<approach>the [\w ,]+?))?\. "
    r"Take the (?P<way>first|second) way (?P<gates>\d+) times\. Which city is the (?P<end>\w+) of the last one\?"
)


@dataclass(frozen=True)
class Rule:
    """What a question asks for.

    Attributes:
        start: the person to begin at.
        approach: certain look-ups that lead from there to the first gate.
        way: which of the two ways on each sign is right, the `first` or the `second`.
        num_gates: turns to take.
        end: what is asked of the person behind the last one.
    """

    start: str
    approach: tuple[str, ...]
    way: str
    num_gates: int
    end: str

    @classmethod
    def parse(cls, question: str) -> Rule:
        """The rule that a question states.

        Raises:
            ValueError: if it states none.
        """
        match = _QUESTION.match(question)
        if match is None:
            raise ValueError(f"question must be one of the gates, got {question[:80]!r}")
        approach = tuple(re.findall(r"the (\w+)", match["approach"] or ""))
        return cls(match["start"], approach, match["way"], int(match["gates"]), match["end"])

    @property
    def text(self) -> str:
        """The question."""
        approach = ", go to " + ", ".join(f"the {name}" for name in self.approach) if self.approach else ""
        return (
            f"Start at {self.start}{approach}. Take the {self.way} way {self.num_gates} times. "
            f"Which city is the {self.end} of the last one?"
        )

    def right_turn(self, world: GateWorld, person: str) -> str:
        """Where to turn at a person."""
        return world.ways(person)[WAYS.index(self.way)]

    def wrong_turn(self, world: GateWorld, person: str) -> str:
        """The other turn."""
        return world.ways(person)[1 - WAYS.index(self.way)]

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
        rule: what the question says.
    """

    rule: Rule = field(kw_only=True)


@dataclass(frozen=True)
class GateProblems(Problems[GateProblem]):
    """Draws walks through gates; equal options, equal problems.

    At each gate a person's sign is looked up, which names two ways, and the question's own rule says which of them to
    take. Each way, and each place on a sign, is right as often as wrong, so no habit is right in general; a wrong turn
    leads on like a right one, to a wrong end.
    """

    known_families: ClassVar[tuple[str, ...]] = tuple(f"gates_{number}" for number in range(1, 6))

    families: dict[str, float] = field(default_factory=lambda: {"gates_3": 1.0})
    """Weight of each family: `gates_1` to `gates_5` by number of gates; one that is left out is not asked."""
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
        rule = Rule(start, approach, rng.choice(WAYS), int(family.removeprefix("gates_")), rng.choice(ENDS))
        steps = tuple(_walk(self.world, rule))
        people = [start, *(step.value for step in steps if step.argument.split()[0] not in (SIGN, *ENDS))]
        at_gates = people[len(approach) : -1]
        if len(set(people)) < len(people):
            return None
        if any(len({self.world.move(person, way) for way in self.world.ways(person)}) < 2 for person in at_gates):
            return None
        if any(self.world.value(rule.end, person) == steps[-1].value for person in people[:-1]):
            return None  # an earlier stop would hit the answer
        return GateProblem(family, rule.text, steps, "city", (start,), rule=rule)


def _walk(world: GateWorld, rule: Rule) -> Iterator[Step]:
    """The right way."""
    person = rule.start

    def look_up(relation: str) -> Step:
        return Step("search", f"{relation} of {person}", world.value(relation, person))

    for name in rule.approach:
        yield look_up(name)
        person = world.move(person, name)
    for _ in range(rule.num_gates):
        yield look_up(SIGN)
        turn = rule.right_turn(world, person)
        yield look_up(turn)
        person = world.move(person, turn)
    yield look_up(rule.end)

"""Questions that carry a rule: which way to turn at which color."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.base import Problem, Problems, Step
from appo.environments.gates.world import APPROACHES, BADGE, HOME, TURNS, GateWorld
from appo.environments.names import COLORS

_QUESTION = re.compile(
    r"Start at (?P<start>\w+ \w+)(?:, go to (?P<approach>the [\w ,]+?))?\. "
    r"At (?P<turns>\w+ \w+(?:, \w+ \w+)+); (?P<gates>\d+) times\."
)


@dataclass(frozen=True)
class Rule:
    """What a question asks for.

    Attributes:
        start: the person to begin at.
        approach: certain look-ups that lead from there to the first gate.
        turns: where to turn at a person with a badge of this color, in the order of the question; there are two ways.
        num_gates: turns to take.
    """

    start: str
    approach: tuple[str, ...]
    turns: Mapping[str, str]
    num_gates: int

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
        turns = dict(pair.split(" ") for pair in match["turns"].split(", "))
        return cls(match["start"], approach, turns, int(match["gates"]))

    @property
    def text(self) -> str:
        """The question."""
        approach = ", go to " + ", ".join(f"the {name}" for name in self.approach) if self.approach else ""
        return (
            f"Start at {self.start}{approach}. {self.turns_text}; {self.num_gates} times. "
            "Which city is the home of the last one?"
        )

    @property
    def turns_text(self) -> str:
        """The part of the question that says where to turn."""
        return "At " + ", ".join(f"{color} {turn}" for color, turn in self.turns.items())

    def right_turn(self, world: GateWorld, person: str) -> str:
        """Where to turn at a person."""
        return self.turns[world.value(BADGE, person)]

    def wrong_turn(self, world: GateWorld, person: str) -> str:
        """The other turn."""
        right = self.right_turn(world, person)
        return next(turn for turn in self.turns.values() if turn != right)

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

    At each gate the color of a person's badge is looked up, and the question's own rule says which of two ways to turn
    there. Two of six turns for four colors make ninety rules, so no habit is right in general; a wrong turn leads on
    like a right one, to a wrong end.
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
        turns = draw_turns(rng)
        rule = Rule(start, approach, turns, int(family.removeprefix("gates_")))
        steps = tuple(_walk(self.world, rule))
        people = [start, *(step.value for step in steps if step.argument.split()[0] not in (BADGE, HOME))]
        at_gates = people[len(approach) : -1]
        if len(set(people)) < len(people):
            return None
        if any(len({self.world.move(person, turn) for turn in turns.values()}) < 2 for person in at_gates):
            return None
        if any(self.world.value(HOME, person) == steps[-1].value for person in people[:-1]):
            return None  # an earlier stop would hit the answer
        return GateProblem(family, rule.text, steps, "city", (start,), rule=rule)


def draw_turns(rng: random.Random) -> dict[str, str]:
    """Two ways for four colors, two colors each."""
    return dict(zip(rng.sample(COLORS, 4), rng.sample(rng.sample(TURNS, 2) * 2, 4), strict=True))


def _walk(world: GateWorld, rule: Rule) -> Iterator[Step]:
    """The right way."""
    person = rule.start

    def look_up(relation: str) -> Step:
        return Step("search", f"{relation} of {person}", world.value(relation, person))

    for name in rule.approach:
        yield look_up(name)
        person = world.move(person, name)
    for _ in range(rule.num_gates):
        yield look_up(BADGE)
        turn = rule.right_turn(world, person)
        yield look_up(turn)
        person = world.move(person, turn)
    yield look_up(HOME)

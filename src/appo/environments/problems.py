"""Questions whose answers need tools, with the steps that lead there."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.arithmetic import MAX_RESULT, draw_expression, draw_story, evaluate
from appo.environments.base import Problem, Problems, Step
from appo.environments.world import NUMBER_RANGES, RELATIONS, Kind, Relation, World


@dataclass(frozen=True)
class WorldProblems(Problems[Problem]):
    """Draws problems about a world; equal options, equal problems.

    The entities and numbers that a problem starts from belong to one split alone: whoever a validation question begins
    with begins no training question.
    """

    known_families: ClassVar[tuple[str, ...]] = (
        *(f"lookup_{hops}" for hops in range(1, 5)),
        "expression",
        "story",
        "mixture",
    )

    families: dict[str, float] = field(
        default_factory=lambda: {
            "lookup_1": 1.0,
            "lookup_2": 2.0,
            "lookup_3": 1.0,
            "lookup_4": 1.0,
            "expression": 2.0,
            "story": 2.0,
            "mixture": 2.0,
        }
    )
    """Weight of each family: `lookup_1` to `lookup_4` by number of look-ups, `expression`, `story`, and `mixture` of
    both tools; one that is left out is not asked."""
    world: World = field(default_factory=World)
    """What look-ups are about."""
    max_number: int = 30
    """Greatest number that an arithmetic question names, at least 9."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_number < 9:
            raise ValueError(f"max_number must be at least 9, got {self.max_number}")

    def draw_one(self, family: str, rng: random.Random) -> Problem | None:
        return FAMILIES[family](self, family, rng)


def _lookup(source: WorldProblems, family: str, rng: random.Random) -> Problem | None:
    """Follows as many relations as the family's name says, from a person on; None if the way crosses itself."""
    person = rng.choice(source.world.entities["person"])
    path = _draw_path(int(family[-1]), rng)
    if path is None:
        return None
    steps = _follow(source.world, person, path)
    if len({person, *(step.value for step in steps)}) <= len(steps):
        return None  # an earlier stop would hit the answer
    opening = {"person": "Who", "city": "Which city", "country": "Which country", "number": "What"}[path[-1].value]
    return Problem(family, f"{opening} is the {_phrase(path, person)}?", steps, path[-1].value, (person,))


def _expression(source: WorldProblems, family: str, rng: random.Random) -> Problem:
    numbers, code = draw_expression(source.max_number, rng)
    return Problem(family, f"What is {code}?", (_calculation(code),), "number", numbers)


def _story(source: WorldProblems, family: str, rng: random.Random) -> Problem:
    person = rng.choice(source.world.entities["person"]).split()[0]
    numbers, text, code = draw_story(person, source.max_number, rng)
    return Problem(family, text, (_calculation(code),), "number", numbers)


def _mixture(source: WorldProblems, family: str, rng: random.Random) -> Problem | None:
    """Compares two people or cities, or calculates with a number that is two look-ups away."""
    return rng.choice([_comparison, _calculation_with_fact])(source, family, rng)


def _comparison(source: WorldProblems, family: str, rng: random.Random) -> Problem | None:
    relation = rng.choice([relation for relation in RELATIONS if relation.name in NUMBER_RANGES])
    first, second = rng.sample(source.world.entities[relation.subject], 2)
    steps = _follow(source.world, first, [relation]) + _follow(source.world, second, [relation])
    larger, smaller = steps[0].value, steps[1].value
    if int(larger) <= int(smaller):
        return None
    text = f"What is the {relation.name} of {first} minus the {relation.name} of {second}?"
    return Problem(family, text, (*steps, _calculation(f"{larger}-{smaller}")), "number", (first, second))


def _calculation_with_fact(source: WorldProblems, family: str, rng: random.Random) -> Problem | None:
    person = rng.choice(source.world.entities["person"])
    path = _draw_path(2, rng)
    if path is None or path[-1].name not in NUMBER_RANGES:
        return None
    steps = _follow(source.world, person, path)
    number = rng.randint(2, source.max_number)
    code = f"{steps[-1].value}{rng.choice('+-')}{number}"
    if not 0 <= evaluate(code) <= MAX_RESULT:
        return None
    sign = {"+": "plus", "-": "minus"}["+" if "+" in code else "-"]
    text = f"What is the {_phrase(path, person)} {sign} {number}?"
    return Problem(family, text, (*steps, _calculation(code)), "number", (person,))


FAMILIES: dict[str, Callable[[WorldProblems, str, random.Random], Problem | None]] = {
    "lookup_1": _lookup,
    "lookup_2": _lookup,
    "lookup_3": _lookup,
    "lookup_4": _lookup,
    "expression": _expression,
    "story": _story,
    "mixture": _mixture,
}
"""What draws a problem of each family; None where the draw came to nothing."""


def _draw_path(length: int, rng: random.Random) -> list[Relation] | None:
    """Relations that fit together, starting at a person; None if a number came too early."""
    path: list[Relation] = []
    kind: Kind = "person"
    for _ in range(length):
        fitting = [relation for relation in RELATIONS if relation.subject == kind]
        if not fitting:
            return None
        path.append(rng.choice(fitting))
        kind = path[-1].value
    return path


def _follow(world: World, start: str, path: list[Relation]) -> tuple[Step, ...]:
    steps = []
    entity = start
    for relation in path:
        value = world.value(relation.name, entity)
        steps.append(Step("search", f"{relation.name} of {entity}", value))
        entity = value
    return tuple(steps)


def _phrase(path: list[Relation], start: str) -> str:
    """``home of the boss of Ana Ruiz``."""
    return " of the ".join(relation.name for relation in reversed(path)) + f" of {start}"


def _calculation(code: str) -> Step:
    return Step("python", code, str(evaluate(code)))

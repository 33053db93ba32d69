"""Questions whose answers need tools, with the steps that lead there."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from appo.environments.arithmetic import MAX_RESULT, draw_expression, draw_story, evaluate
from appo.environments.world import NUMBER_RANGES, RELATIONS, Kind, Relation, World

Split = Literal["train", "validation", "test"]

SPLIT_SHARES: dict[Split, int] = {"train": 80, "validation": 10, "test": 10}
"""Percent of all combinations of entities or numbers that a split may ask about."""

MAX_DRAWS = 5000
"""Draws after which a family is taken to have no further problem."""


@dataclass(frozen=True)
class Step:
    """One tool call on the way to an answer.

    Attributes:
        tool: `search` or `python`.
        argument: what to call it with.
        value: what the call is made for: a piece of what the tool answers.
    """

    tool: str
    argument: str
    value: str


@dataclass(frozen=True)
class Problem:
    """A question and how to answer it; the value of the last step is the answer.

    Attributes:
        family: the kind of question.
        text: what is asked.
        steps: the shortest way to the answer, one step at least.
        kind: what the answer is.
        combination: the entities or numbers that the question starts from; no two splits share one.
    """

    family: str
    text: str
    steps: tuple[Step, ...]
    kind: Kind
    combination: tuple[str, ...]

    @property
    def answer(self) -> str:
        """What is right."""
        return self.steps[-1].value

    @property
    def id(self) -> str:
        """Follows from family and text alone."""
        return f"{self.family}-{blake2b(self.text.encode(), digest_size=6).hexdigest()}"

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """The question as a conversation, as chat templates take it."""
        return ({"role": "user", "content": self.text},)


@dataclass(frozen=True)
class WorldProblems:
    """Draws problems about a world; equal options, equal problems.

    The entities and numbers that a problem starts from belong to one split alone: whoever a validation question begins
    with begins no training question.
    """

    world: World = field(default_factory=World)
    """What look-ups are about."""
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
    max_number: int = 30
    """Greatest number that an arithmetic question names, at least 9."""
    num_train: int = 4000
    """Problems of the training split."""
    num_validation: int = 128
    """Problems of the validation split."""
    num_test: int = 256
    """Problems of the test split."""
    seed: int = 0
    """Decides which problems are drawn and which split a combination belongs to."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown:
            raise ValueError(f"families must be among {', '.join(FAMILIES)}, got {', '.join(unknown)}")
        if not any(weight > 0.0 for weight in self.families.values()) or min(self.families.values()) < 0.0:
            raise ValueError(f"families must have weights of 0 and more, one of them positive, got {self.families}")
        if self.max_number < 9:
            raise ValueError(f"max_number must be at least 9, got {self.max_number}")
        for split in SPLIT_SHARES:
            if self.size(split) < 1:
                raise ValueError(f"num_{split} must be at least 1, got {self.size(split)}")

    def size(self, split: Split) -> int:
        """How many problems a split has."""
        return {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}[split]

    def draw(self, split: Split) -> tuple[Problem, ...]:
        """The problems of a split, no question twice.

        Raises:
            ValueError: if the world does not offer that many.
        """
        rng = random.Random(f"problems {self.seed} {split}")
        names, weights = list(self.families), list(self.families.values())
        problems: dict[str, Problem] = {}
        while len(problems) < self.size(split):
            (family,) = rng.choices(names, weights)
            problem = self._draw_new(family, split, problems, rng)
            problems[problem.text] = problem
        return tuple(problems.values())

    def split_of(self, combination: tuple[str, ...]) -> Split:
        """The one split that may ask about a combination."""
        key = " ".join([str(self.seed), *sorted(combination)])
        percent = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % 100
        for split, share in SPLIT_SHARES.items():
            if percent < share:
                return split
            percent -= share
        raise AssertionError("shares add up to 100")

    def _draw_new(self, family: str, split: Split, known: Mapping[str, Problem], rng: random.Random) -> Problem:
        for _ in range(MAX_DRAWS):
            problem = FAMILIES[family](self, family, rng)
            if problem is not None and problem.text not in known and self.split_of(problem.combination) == split:
                return problem
        raise ValueError(
            f"num_{split} must not exceed what the families offer, about {len(known)} by their weights, "
            f"got {self.size(split)}; {family} has no more"
        )


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

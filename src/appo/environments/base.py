"""What every environment offers: problems, drawn into splits that share none."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, Generic, Literal, TypeVar

from appo.environments.world import Kind

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
class Decision:
    """A token that decides, as an environment knows it.

    Attributes:
        position: of the token, over the whole sequence.
        name: of the kind of decision, as people read it.
        is_right: whether it is the right one.
    """

    position: int
    name: str
    is_right: bool


ProblemT = TypeVar("ProblemT", bound=Problem)


@dataclass(frozen=True)
class Problems(ABC, Generic[ProblemT]):
    """Draws problems of some families; equal options, equal problems.

    What a problem starts from, its combination, belongs to one split alone.
    """

    known_families: ClassVar[tuple[str, ...]]

    families: dict[str, float]
    """Weight of each family; one that is left out is not asked."""
    num_train: int = 4000
    """Problems of the training split."""
    num_validation: int = 128
    """Problems of the validation split."""
    num_test: int = 256
    """Problems of the test split."""
    seed: int = 0
    """Decides which problems are drawn and which split a combination belongs to."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.families) - set(self.known_families))
        if unknown:
            raise ValueError(f"families must be among {', '.join(self.known_families)}, got {', '.join(unknown)}")
        if not any(weight > 0.0 for weight in self.families.values()) or min(self.families.values()) < 0.0:
            raise ValueError(f"families must have weights of 0 and more, one of them positive, got {self.families}")
        for split in SPLIT_SHARES:
            if self.size(split) < 1:
                raise ValueError(f"num_{split} must be at least 1, got {self.size(split)}")

    @abstractmethod
    def draw_one(self, family: str, rng: random.Random) -> ProblemT | None:
        """A problem of a family, of whatever split; None where the draw came to nothing."""

    def size(self, split: Split) -> int:
        """How many problems a split has."""
        return {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}[split]

    def draw(self, split: Split) -> tuple[ProblemT, ...]:
        """The problems of a split, no question twice.

        Raises:
            ValueError: if the world does not offer that many.
        """
        rng = random.Random(f"problems {self.seed} {split}")
        names, weights = list(self.families), list(self.families.values())
        problems: dict[str, ProblemT] = {}
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

    def _draw_new(self, family: str, split: Split, known: Mapping[str, ProblemT], rng: random.Random) -> ProblemT:
        for _ in range(MAX_DRAWS):
            problem = self.draw_one(family, rng)
            if problem is not None and problem.text not in known and self.split_of(problem.combination) == split:
                return problem
        raise ValueError(
            f"num_{split} must not exceed what the families offer, about {len(known)} by their weights, "
            f"got {self.size(split)}; {family} has no more"
        )

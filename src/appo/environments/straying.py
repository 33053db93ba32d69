"""Demonstrations that decide wrongly now and then, and look like right ones."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Generic

from appo.core.trajectory import Segment
from appo.environments.base import Problems, ProblemT, Split
from appo.environments.demonstrations import Demonstration
from appo.tools.base import Tool
from appo.tools.tag_syntax import TagSyntax

FILLERS = ("well", "now", "so", "then", "next", "okay", "fine", "hmm")
"""Words that thoughts hold behind the one that matters: each is drawn from all alike, ``log 8 = 2.08`` nats."""


@dataclass(frozen=True)
class StrayingDemonstrations(ABC, Generic[ProblemT]):
    """Solutions with real tool output behind every decision; equal options, equal conversations.

    A thought is the word that matters and two fillers. Wrong decisions come independently of all else, and look like
    right ones in form, length and number of calls.
    """

    name: ClassVar[str]
    """Of the environment; goes into the seed."""

    problems: Problems[ProblemT]
    """What is solved."""
    syntax: TagSyntax = field(default_factory=TagSyntax)
    """How rollouts wrap what tools answer."""
    wrong_shares: dict[str, float] = field(default_factory=dict)
    """Chance of a wrong decision each time, by family; none is wrong in one that is left out. A policy from nothing
    learns to decide rightly from short problems without wrong decisions, and from longer ones to do so now and then."""
    per_problem: int = 1
    """Conversations about each problem; they differ in decisions and fillers."""
    seed: int = 0
    """Decides decisions and fillers."""

    def __post_init__(self) -> None:
        for family, share in self.wrong_shares.items():
            if family not in self.problems.families or not 0.0 <= share <= 1.0:
                raise ValueError(
                    f"wrong_shares must lie in [0, 1] for families among {', '.join(self.problems.families)}, "
                    f"got {share} for {family}"
                )
        if self.per_problem < 1:
            raise ValueError(f"per_problem must be at least 1, got {self.per_problem}")

    def draw(self, split: Split) -> tuple[Demonstration, ...]:
        """`per_problem` conversations about each problem of the split, in the order of the problems."""
        rng = random.Random(f"{self.name} demonstrations {self.seed} {split}")
        problems = [problem for problem in self.problems.draw(split) for _ in range(self.per_problem)]
        return tuple(self.demonstrate(problem, rng) for problem in problems)

    @abstractmethod
    def demonstrate(self, problem: ProblemT, rng: random.Random) -> Demonstration:
        """One conversation about a problem."""

    def is_wrong(self, problem: ProblemT, rng: random.Random) -> bool:
        """Whether the next decision is wrong."""
        return rng.random() < self.wrong_shares.get(problem.family, 0.0)

    def call(self, tool: Tool, argument: str, answer: str, word: str, rng: random.Random) -> Iterator[Segment]:
        """A thought, a call, and what the tool answered."""
        yield Segment(f"{thought(word, rng)}<{tool.name}> {argument} </{tool.name}>", is_generated=True)
        yield Segment(self.syntax.format_result(answer), is_generated=False)

    def conclude(self, answer: str, rng: random.Random) -> Segment:
        """The last thought, and the answer."""
        return Segment(f"{thought('done', rng)}<answer> \\boxed{{ {answer} }} </answer>", is_generated=True)


def thought(word: str, rng: random.Random) -> str:
    """A thought about one word."""
    first, second = rng.choices(FILLERS, k=2)
    return f"<think> {word} {first} {second} </think>"

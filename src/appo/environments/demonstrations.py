"""Solved conversations about a world, in the format that rollouts have, some by a poor strategy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from appo.core.trajectory import Segment
from appo.environments.base import Problem, Split, Step
from appo.environments.problems import WorldProblems
from appo.environments.search import WorldSearch
from appo.tools.base import Tool
from appo.tools.search.tool import SearchTool
from appo.tools.tag_syntax import TagSyntax

Strategy = Literal["solve", "guess", "stop_early", "stray"]
"""How a demonstration goes about a problem: all steps, none, all but the last, or other steps than it should."""

THOUGHTS = {"search": "Search", "python": "Calculate"}
"""What precedes a call of each tool."""


@dataclass(frozen=True)
class Demonstration:
    """One conversation.

    Attributes:
        problem: what is asked.
        strategy: how it was gone about.
        segments: the response; what `is_generated` is the assistant's, the rest came from tools.
    """

    problem: Problem
    strategy: Strategy
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class WorldDemonstrations:
    """Answers the problems of a world with real tool output; equal options, equal conversations.

    A policy that learned from them is able, but inconsistent: it knows how to use the tools, and often does not.
    """

    problems: WorldProblems = field(default_factory=WorldProblems)
    """What is answered."""
    search: Tool = field(default_factory=lambda: SearchTool(WorldSearch()))
    """The search tool of the rollouts; must know the world of `problems`."""
    syntax: TagSyntax = field(default_factory=TagSyntax)
    """How rollouts wrap what tools answer."""
    guess_share: float = 0.25
    """Share of conversations that answer at once, with any value of the right kind."""
    stop_early_share: float = 0.25
    """Share of the other conversations of two and more steps that leave out the last one: they answer with the value
    before it, or guess what is left to calculate."""
    seed: int = 0
    """Decides strategies and guesses."""

    def __post_init__(self) -> None:
        for name in ("guess_share", "stop_early_share"):
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")

    def draw(self, split: Split) -> tuple[Demonstration, ...]:
        """One conversation a problem of the split, in the order of the problems.

        Raises:
            ValueError: if the search tool does not know the world.
        """
        rng = random.Random(f"demonstrations {self.seed} {split}")
        return tuple(self._demonstrate(problem, rng) for problem in self.problems.draw(split))

    def _demonstrate(self, problem: Problem, rng: random.Random) -> Demonstration:
        strategy = self._choose(problem, rng)
        num_steps = {"solve": len(problem.steps), "guess": 0, "stop_early": len(problem.steps) - 1}[strategy]
        segments = [segment for step in problem.steps[:num_steps] for segment in self._call(step)]
        if strategy == "solve":
            thought, answer = "Done", problem.answer
        elif strategy == "stop_early" and problem.steps[-1].tool == "search":
            thought, answer = "Done", problem.steps[-2].value
        else:
            thought, answer = "Guess", self._guess(problem, rng)
        segments.append(Segment(f"<think> {thought} </think><answer> \\boxed{{ {answer} }} </answer>", True))
        return Demonstration(problem, strategy, tuple(segments))

    def _choose(self, problem: Problem, rng: random.Random) -> Strategy:
        if rng.random() < self.guess_share:
            return "guess"
        if len(problem.steps) > 1 and rng.random() < self.stop_early_share:
            return "stop_early"
        return "solve"

    def _call(self, step: Step) -> Iterator[Segment]:
        yield Segment(
            f"<think> {THOUGHTS[step.tool]} </think><{step.tool}> {step.argument} </{step.tool}>", is_generated=True
        )
        # A calculation is known without an interpreter: it prints one number.
        result = self.search(step.argument) if step.tool == "search" else step.value
        if step.value not in result:
            raise ValueError(f"search must answer {step.argument!r} with {step.value!r}, got {result!r}")
        yield Segment(self.syntax.format_result(result), is_generated=False)

    def _guess(self, problem: Problem, rng: random.Random) -> str:
        """Any value of the kind asked for; a number is of about the right size."""
        if problem.kind != "number":
            return rng.choice(self.problems.world.entities[problem.kind])
        return str(max(0, int(problem.answer) + rng.choice([-20, -10, -2, -1, 1, 2, 10, 20])))

"""Questions about generated worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appo.environments.base import Decision, Problems
from appo.environments.codes import CodeProblems
from appo.environments.forks import ForkProblems
from appo.environments.gates import GateProblems, find_turns
from appo.environments.houses import HouseProblems, find_choices
from appo.environments.problems import WorldProblems
from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split


class GeneratedQuestions(PromptSource):
    """Asks the problems of an environment.

    Attributes:
        problems: what is asked.
        tool_instructions: whether prompts hold what the call syntax says of tools.
    """

    problems: Problems[Any]
    tool_instructions: bool

    def load(self, split: Split) -> Sequence[Question]:
        told = self.tool_instructions
        return [
            Question(problem.id, problem.messages, (problem.answer,), problem.family, tool_instructions=told)
            for problem in self.problems.draw(split)
        ]


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class WorldQuestions(GeneratedQuestions):
    """Problems whose answers need tools: look-ups in a generated world, calculations, and mixtures of both."""

    problems: WorldProblems = field(default_factory=WorldProblems)
    """What is asked."""
    tool_instructions: bool = False
    """Whether prompts hold what the call syntax says of tools; a policy that its demonstrations taught does without."""


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class GateQuestions(GeneratedQuestions):
    """Walks on which every turn is a decision, and signs say which way is right."""

    problems: GateProblems = field(default_factory=GateProblems)
    """What is asked."""
    tool_instructions: bool = False
    """Whether prompts hold what the call syntax says of tools; a policy that its demonstrations taught does without."""

    def decisions(self, question: str, tokens: Sequence[str], is_sampled: Sequence[bool]) -> Sequence[Decision]:
        turns = find_turns(question, tokens, is_sampled, self.problems.world)
        return [Decision(turn.position, f"{self.problems.place} {turn.gate + 1}", turn.is_right) for turn in turns]


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class ForkQuestions(GateQuestions):
    """Walks on which some wrong turns can be mended."""

    problems: ForkProblems = field(default_factory=ForkProblems)
    """What is asked."""


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class CodeQuestions(GateQuestions):
    """Walks on which nothing says what a sign stands for."""

    problems: CodeProblems = field(default_factory=CodeProblems)
    """What is asked."""


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class HouseQuestions(GeneratedQuestions):
    """Houses with a door that every key opens, and clues that say which key is right."""

    problems: HouseProblems = field(default_factory=HouseProblems)
    """What is asked."""
    tool_instructions: bool = False
    """Whether prompts hold what the call syntax says of tools; a policy that its demonstrations taught does without."""

    def decisions(self, question: str, tokens: Sequence[str], is_sampled: Sequence[bool]) -> Sequence[Decision]:
        choices = find_choices(question, tokens, is_sampled, self.problems.world)
        return [Decision(choice.position, choice.clue, choice.is_right) for choice in choices]

"""Questions about generated worlds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appo.environments.base import Decision, Problems
from appo.environments.gates import GateProblems, find_turns
from appo.environments.houses import HouseProblems, find_choices
from appo.environments.problems import WorldProblems
from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class WorldQuestions(PromptSource):
    """Problems whose answers need tools: look-ups in a generated world, calculations, and mixtures of both."""

    problems: WorldProblems = field(default_factory=WorldProblems)
    """What is asked."""

    def load(self, split: Split) -> Sequence[Question]:
        return _questions(self.problems, split)


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class GateQuestions(PromptSource):
    """Walks on which every turn is a decision, and signs say which way is right."""

    problems: GateProblems = field(default_factory=GateProblems)
    """What is asked."""

    def load(self, split: Split) -> Sequence[Question]:
        return _questions(self.problems, split)

    def decisions(self, question: str, tokens: Sequence[str], is_sampled: Sequence[bool]) -> Sequence[Decision]:
        turns = find_turns(question, tokens, is_sampled, self.problems.world)
        return [Decision(turn.position, f"gate {turn.gate + 1}", turn.is_right) for turn in turns]


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class HouseQuestions(PromptSource):
    """Houses with a door that every key opens, and clues that say which key is right."""

    problems: HouseProblems = field(default_factory=HouseProblems)
    """What is asked."""

    def load(self, split: Split) -> Sequence[Question]:
        return _questions(self.problems, split)

    def decisions(self, question: str, tokens: Sequence[str], is_sampled: Sequence[bool]) -> Sequence[Decision]:
        choices = find_choices(question, tokens, is_sampled, self.problems.world)
        return [Decision(choice.position, choice.clue, choice.is_right) for choice in choices]


def _questions(problems: Problems[Any], split: Split) -> list[Question]:
    return [
        Question(problem.id, problem.messages, (problem.answer,), problem.family) for problem in problems.draw(split)
    ]

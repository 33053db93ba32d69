"""Questions about a generated world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from appo.environments.problems import WorldProblems
from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class WorldQuestions(PromptSource):
    """Problems whose answers need tools: look-ups in a generated world, calculations, and mixtures of both."""

    problems: WorldProblems = field(default_factory=WorldProblems)
    """What is asked."""

    def load(self, split: Split) -> Sequence[Question]:
        return [
            Question(problem.id, problem.messages, (problem.answer,), problem.family)
            for problem in self.problems.draw(split)
        ]

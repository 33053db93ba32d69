"""What every prompt source offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from appo.registry import Registry

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Question:
    """A question before it is tokenized.

    Attributes:
        id: unique in its source and stable over runs.
        messages: the conversation so far, ``{"role": ..., "content": ...}`` each, as chat templates take it.
        answers: accepted answers, at least one.
        source: the part of the data it comes from; metrics are also reported by source.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    answers: tuple[str, ...]
    source: str = ""

    @property
    def text(self) -> str:
        """What the user asks last."""
        return self.messages[-1]["content"]


class PromptSource(ABC):
    """Where questions come from."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits there are; training goes without validation where there is none."""
        return ("train", "validation", "test")

    @abstractmethod
    def load(self, split: Split) -> Sequence[Question]:
        """The questions of one split, in a fixed order; splits share no question.

        Raises:
            ValueError: if the split has no question, or one cannot be used.
            FileNotFoundError: if a file is missing.
        """


PROMPT_SOURCES: Registry[PromptSource] = Registry("prompt source", group="appo.prompts")

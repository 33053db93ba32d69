"""Prompts in little memory."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator

from appo.core.trajectory import Prompt
from appo.prompts.base import Question


class PromptStore:
    """Tokenized questions, all token ids in one array; a `Prompt` is made when it is asked for."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.parts: list[str] = []
        self._texts: list[str] = []
        self._answers: list[tuple[str, ...]] = []
        self._sources: list[str] = []
        self._are_public = array("b")
        self._token_ids = array("i")
        self._ends = array("q", [0])

    def append(self, question: Question, token_ids: Iterable[int]) -> None:
        """Adds a question behind the others."""
        self.ids.append(question.id)
        self.parts.append(sys.intern(question.part))
        self._texts.append(question.text)
        self._answers.append(question.answers)
        self._sources.append(sys.intern(question.source))
        self._are_public.append(question.is_public)
        self._token_ids.extend(token_ids)
        self._ends.append(len(self._token_ids))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Prompt:
        if not 0 <= number < len(self):
            raise IndexError(f"number must lie in [0, {len(self)}), got {number}")
        token_ids = self._token_ids[self._ends[number] : self._ends[number + 1]]
        return Prompt(
            self.ids[number],
            self._texts[number],
            tuple(token_ids),
            self._answers[number],
            self._sources[number],
            bool(self._are_public[number]),
        )

    def __iter__(self) -> Iterator[Prompt]:
        return map(self.__getitem__, range(len(self)))

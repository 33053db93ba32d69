"""Questions from JSON-lines files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appo.prompts.base import PROMPT_SOURCES, PromptSource, Question, Split


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class JsonlQuestions(PromptSource):
    """One question a line, each line a JSON object; a file a split. Blank lines are skipped.

    A question of the training file must not stand in the other two; those may be the same file.
    """

    train: str | None = None
    """File of the questions to learn from."""
    validation: str | None = None
    """File of the questions that training is watched with."""
    test: str | None = None
    """File of the questions for the final measurement."""
    question_key: str = "question"
    """Key of the question, a text."""
    answer_key: str = "answer"
    """Key of the accepted answers: a text, a number, or a list of them."""
    id_key: str | None = None
    """Key of the id, a text or a number unique in the file; without one the line number is the id."""
    source_key: str | None = None
    """Key of the part of the data a question comes from, by which metrics are also reported."""
    system_prompt: str | None = None
    """Text that opens every conversation."""

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in super().splits if getattr(self, split) is not None)

    def load(self, split: Split) -> list[Question]:
        questions = self._read(split)
        others = ("validation", "test") if split == "train" else ("train",)
        for other in others:
            if getattr(self, other) is not None:
                self._check_disjoint(split, questions, other)
        return list(questions.values())

    def _read(self, split: str) -> dict[int, Question]:
        """The questions of a split by line number."""
        name: str | None = getattr(self, split)
        if name is None:
            raise ValueError(f"{split} must name a file to load the {split} split, got None")
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"{split} must name a file, got {name!r}, which is none")
        questions: dict[int, Question] = {}
        line_of: dict[str, int] = {}
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                question = self._parse(line, number, path)
                if (earlier := line_of.setdefault(question.id, number)) != number:
                    raise _error(
                        path, number, self.id_key or "id", "be unique", f"{question.id!r} as in line {earlier}"
                    )
                questions[number] = question
        if not questions:
            raise ValueError(f"{split} must hold at least one question, got the empty file {path}")
        return questions

    def _parse(self, line: bytes, number: int, path: Path) -> Question:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {path} must be a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"line {number} of {path} must be a JSON object, got {line[:80].decode(errors='replace').strip()}"
            )
        text = record.get(self.question_key)
        if not isinstance(text, str) or not text.strip():
            raise _error(
                path, number, self.question_key, "be a text that is not empty", _shown(record, self.question_key)
            )
        messages = [{"role": "user", "content": text}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return Question(
            id=str(number) if self.id_key is None else self._text(record, self.id_key, number, path),
            messages=tuple(messages),
            answers=self._answers(record, number, path),
            source="" if self.source_key is None else self._text(record, self.source_key, number, path),
        )

    def _text(self, record: dict[str, Any], key: str, number: int, path: Path) -> str:
        text = _to_text(record.get(key))
        if not text:
            raise _error(path, number, key, "be a text or a number", _shown(record, key))
        return text

    def _answers(self, record: dict[str, Any], number: int, path: Path) -> tuple[str, ...]:
        value = record.get(self.answer_key)
        answers = [_to_text(answer) for answer in (value if isinstance(value, list) else [value])]
        if not answers or not all(answers):
            rule = "be a text, a number, or a list of them, none empty"
            raise _error(path, number, self.answer_key, rule, _shown(record, self.answer_key))
        return tuple(answers)

    def _check_disjoint(self, split: str, questions: dict[int, Question], other: str) -> None:
        line_of = {question.text.strip(): number for number, question in questions.items()}
        for number, question in self._read(other).items():
            if (line := line_of.get(question.text.strip())) is not None:
                raise ValueError(
                    f"{split} and {other} must share no question, got {question.text[:80]!r} in line {line} of "
                    f"{getattr(self, split)} and line {number} of {getattr(self, other)}"
                )


def _to_text(value: object) -> str:
    """The text of a text or a number; empty for anything else. A boolean counts as neither."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _shown(record: dict[str, Any], key: str) -> str:
    return json.dumps(record[key])[:80] if key in record else f"none among the keys {', '.join(record)}"


def _error(path: Path, number: int, key: str, rule: str, got: str) -> ValueError:
    return ValueError(f"{key} in line {number} of {path} must {rule}, got {got}")

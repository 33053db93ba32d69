"""Questions from rows with named columns, whatever file or dataset holds them."""

from __future__ import annotations

import logging
import math
import re
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar

from appo.core.foreign_json import beginning
from appo.prompts.base import (
    PromptSource,
    Question,
    Split,
    UnusableReason,
    UnusableRow,
    UnusableRowError,
    check_encodable,
    only_questions,
    to_messages,
    with_system_prompt,
)

log = logging.getLogger(__name__)

MISSING = object()
"""What a record has under a key that it lacks."""

DAMAGED_COMMANDS = {"\b" + "oxed": r"\boxed", "\f" + "rac": r"\frac"}
"""LaTeX commands whose backslash and first letter were once read as the escape of a control character."""


@dataclass(frozen=True)
class Record:
    """One row as it was read.

    Attributes:
        number: of the row; lines of text count from 1, rows of tables from 0.
        values: its fields.
        problem: why the row could not be read, as in ``be a JSON object, got [1]``; empty if it could.
    """

    number: int
    values: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True)
class TableQuestions(PromptSource):
    """One question a row. Keys with dots in them lead into nested fields: ``reward_model.ground_truth``.

    A question of the training split must not stand in the other two; those may be the same.
    """

    unit: ClassVar[str] = "row"
    place: ClassVar[str] = "file"

    train: str | None = None
    """File of the questions to learn from."""
    validation: str | None = None
    """File of the questions that training is watched with."""
    test: str | None = None
    """File of the questions for the final measurement."""
    question_key: str = "question"
    """Key of the question: a text, or a list of messages with `role` and `content` that ends with the user's."""
    answer_key: str = "answer"
    """Key of the accepted answers: a text, a number, or a list of them."""
    id_key: str | None = None
    """Key of the id, a text or a number unique in the file; `null`: the number of the row."""
    source_key: str | None = None
    """Key of the part of the data a question comes from, by which metrics are also reported."""
    system_prompt: str | None = None
    """System message of every conversation, in place of that of the row; `null`: the row's, if it has one."""
    answer_pattern: str | None = None
    """Regular expression with one group, whose last match in a text is the answer; `null`: the whole text."""
    answer_separator: str | None = None
    """What stands between the accepted answers in a text; `null`: the text is one answer."""
    balanced_answers: bool = False
    """Whether a row whose answer does not close every bracket that it opens is unusable."""
    repair: bool = True
    r"""Whether ``\boxed`` and ``\frac`` are restored where a control character stands for their first two letters."""
    quote_rows: bool = True
    """Whether messages about unusable rows quote them, and the trajectories that an evaluation saves hold their text;
    both give row numbers or ids in any case."""

    def __post_init__(self) -> None:
        if self.answer_pattern is not None:
            try:
                num_groups = re.compile(self.answer_pattern).groups
            except re.error as error:
                message = f"answer_pattern must be a regular expression, got {self.answer_pattern!r}: {error}"
                raise ValueError(message) from error
            if num_groups != 1:
                raise ValueError(f"answer_pattern must have one group, got {num_groups} in {self.answer_pattern!r}")
        if self.answer_separator == "":
            raise ValueError("answer_separator must not be empty, got ''")

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in super().splits if getattr(self, split) is not None)

    @abstractmethod
    def records(self, split: Split) -> Iterator[Record]:
        """The rows of one split as they are.

        Raises:
            FileNotFoundError: if a file is missing.
        """

    def location(self, split: Split) -> str:
        """What `train`, `validation` or `test` names.

        Raises:
            ValueError: if it names nothing.
        """
        name: str | None = getattr(self, split)
        if name is None:
            raise ValueError(f"{split} must name a {self.place} to load the {split} split, got None")
        return name

    def origin(self, split: Split) -> str:
        """What messages call the place that a split is read from."""
        return self.location(split)

    def load(self, split: Split) -> list[Question]:
        questions = only_questions(self.rows(split))
        if split != "train" and self.train is not None:
            for row in self.rows("train"):
                if isinstance(row, UnusableRow) and row.reason == "held_out":
                    raise ValueError(row.message)
        return questions

    def rows(self, split: Split) -> Iterator[Question | UnusableRow]:
        origin = self.origin(split)
        held_out = self._held_out() if split == "train" else {}
        row_of: dict[str, int] = {}
        num_rows = num_repaired = 0
        for record in self.records(split):
            num_rows += 1
            place = f"{self.unit} {record.number} of {origin}"
            try:
                question, is_repaired = self._question(record, place)
                if self.id_key is not None and (first := row_of.setdefault(question.id, record.number)) < record.number:
                    what = f"be unique, got {question.id!r} as in {self.unit} {first}"
                    raise UnusableRowError("duplicate_id", f"{self.id_key} in {place} must {what}")
                self._check_held_out(question, place, held_out)
            except UnusableRowError as error:
                yield UnusableRow(origin, record.number, error.reason, str(error))
            else:
                num_repaired += is_repaired
                yield replace(question, origin=origin, row=record.number)
        if not num_rows:
            raise ValueError(f"{split} must hold at least one question, got the empty {self.place} {origin}")
        if num_repaired:
            log.info(r"%s: restored \boxed or \frac in %d rows", origin, num_repaired)

    def _question(self, record: Record, place: str) -> tuple[Question, bool]:
        """The question of a row, and whether it was damaged."""
        if record.problem:
            raise UnusableRowError("unreadable", f"{place} must {record.problem}")
        fields = Fields(record.values, place, self.quote_rows)
        messages = to_messages(fields[self.question_key])
        if messages is None:
            raise fields.unusable("no_question", self.question_key, "be a text that is not empty")
        if self.system_prompt is not None:
            messages = tuple(with_system_prompt(messages, self.system_prompt))
        repaired = tuple({**message, "content": self._content(message)} for message in messages)
        question = Question(
            id=str(record.number) if self.id_key is None else fields.text(self.id_key, "no_id"),
            messages=repaired,
            answers=self._answers(fields),
            source="" if self.source_key is None else sys.intern(fields.text(self.source_key, "no_source")),
            is_public=self.quote_rows,
        )
        check_encodable(question, place)
        return question, repaired != messages

    def _content(self, message: Mapping[str, str]) -> str:
        content = repair_commands(message["content"]) if self.repair else message["content"]
        # Rows mostly share their system message: it is kept once.
        return sys.intern(content) if message["role"] == "system" else content

    def _answers(self, fields: Fields) -> tuple[str, ...]:
        value = fields[self.answer_key]
        answers = [to_text(answer) for answer in (value if isinstance(value, list | tuple) else [value])]
        rule = "be a text, a number, or a list of them, none empty"
        if self.answer_pattern is not None:
            rule = f"be a text that matches {self.answer_pattern}, or a list of them"
            found = [re.findall(self.answer_pattern, answer) for answer in answers]
            answers = [matches[-1].strip() if matches else "" for matches in found]
        if self.answer_separator is not None:
            answers = [part.strip() for answer in answers for part in answer.split(self.answer_separator)]
        if not answers or not all(answers):
            raise fields.unusable("no_answer", self.answer_key, rule)
        if self.balanced_answers and not all(map(is_balanced, answers)):
            raise fields.unusable("broken_answer", self.answer_key, "close every bracket that it opens")
        return tuple(answers)

    def _check_held_out(self, question: Question, place: str, held_out: Mapping[str, tuple[Split, int]]) -> None:
        if (found := held_out.get(question.text.strip())) is not None:
            text = f"{question.text[:80]!r} in " if self.quote_rows else ""
            places = f"{place} and {self.unit} {found[1]} of {self.origin(found[0])}"
            raise UnusableRowError("held_out", f"train and {found[0]} must share no question, got {text}{places}")

    def _held_out(self) -> dict[str, tuple[Split, int]]:
        """The questions that training must not see, with the split and the row that has them."""
        found: dict[str, tuple[Split, int]] = {}
        for split in self.splits:
            for record in self.records(split) if split != "train" else ():
                messages = None if record.problem else to_messages(lookup(record.values, self.question_key))
                if messages is not None:
                    found.setdefault(self._content(messages[-1]).strip(), (split, record.number))
        return found


def lookup(record: Mapping[str, Any], key: str) -> Any:
    """The field under a key, or along a path of keys with dots between them; `MISSING` if there is none."""
    if key in record:
        return record[key]
    found: Any = record
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return MISSING
        found = found[name]
    return found


def to_text(value: object) -> str:
    """The text of a text or a finite number; empty for anything else. A boolean counts as neither."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return ""
    return str(value)


def repair_commands(text: str) -> str:
    r"""Puts ``\boxed`` and ``\frac`` back where a control character stands for their beginning."""
    for damaged, command in DAMAGED_COMMANDS.items():
        text = text.replace(damaged, command)
    return text


def is_balanced(answer: str) -> bool:
    r"""Whether an answer closes every bracket that it opens.

    Braces nest, escaped ones aside. Round and square brackets count as one kind and need not nest: ``(0, 1]`` and
    ``]0, 1[`` are intervals.
    """
    text = re.sub(r"\\[{}\\]", "", answer)
    depth = 0
    for brace in re.findall(r"[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    num_opened, num_closed = (sum(map(text.count, brackets)) for brackets in ("([", ")]"))
    return depth == 0 and num_opened == num_closed


@dataclass(frozen=True)
class Fields:
    """A record whose fields say what is wrong with them.

    Attributes:
        values: the fields by key.
        place: what messages call the record, as in ``line 3 of train.jsonl``.
        quote: whether messages quote values; without, they only say of what kind one is.
    """

    values: Mapping[str, Any]
    place: str
    quote: bool

    def __getitem__(self, key: str) -> Any:
        return lookup(self.values, key)

    def text(self, key: str, reason: UnusableReason) -> str:
        """The text of a field that must be a text or a number.

        Raises:
            UnusableRowError: if it is neither.
        """
        text = to_text(self[key])
        if not text:
            raise self.unusable(reason, key, "be a text or a number")
        return text

    def unusable(self, reason: UnusableReason, key: str, rule: str) -> UnusableRowError:
        """The error of a field that breaks a rule."""
        value = self[key]
        if value is MISSING:
            got = f"none among the keys {', '.join(map(str, self.values))}"
        else:
            got = beginning(value) if self.quote else f"a {type(value).__name__}"
        return UnusableRowError(reason, f"{key} in {self.place} must {rule}, got {got}")

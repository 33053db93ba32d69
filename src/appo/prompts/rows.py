"""Questions from rows with named columns, whatever file or dataset holds them."""

from __future__ import annotations

import logging
import re
import sys
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from appo.prompts.base import (
    PromptSource,
    Question,
    Split,
    UnusableRow,
    UnusableRowError,
    check_encodable,
    only_usable,
    to_messages,
    with_system_prompt,
)
from appo.prompts.fields import MISSING, Fields, is_balanced, lookup, repair_commands, to_text

log = logging.getLogger(__name__)


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
    columns: Sequence[str] = ()
    """Keys of further fields, which rewards get by the last part of the key; a row without one has None there."""
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

    needs_answers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = [key.rpartition(".")[2] for key in self.columns]
        if not all(map(str.isidentifier, names)) or len(set(names)) < len(names):
            raise ValueError(f"columns must end in different names that a function can have, got {list(self.columns)}")
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
        questions = only_usable(self.rows(split))
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
        found: Counter[str] = Counter()
        for record in self.records(split):
            num_rows += 1
            found.update(key for key in self.columns if lookup(record.values, key) is not MISSING)
            place = f"{self.unit} {record.number} of {origin}"
            try:
                question, is_repaired = self._question(record, place)
                if self.id_key is not None and (first := row_of.setdefault(question.id, record.number)) < record.number:
                    what = f"be unique, got {question.id[:80]!r} as in {self.unit} {first}"
                    raise UnusableRowError("duplicate_id", f"{self.id_key} in {place} must {what}")
                self._check_held_out(question, place, held_out)
            except UnusableRowError as error:
                yield UnusableRow(origin, record.number, error.reason, str(error))
            else:
                num_repaired += is_repaired
                yield replace(question, origin=origin, row=record.number)
        if not num_rows:
            raise ValueError(f"{split} must hold at least one question, got the empty {self.place} {origin}")
        if absent := [key for key in self.columns if not found[key]]:
            raise ValueError(f"columns must name fields of {self.unit}s, got {absent[0]!r}, which none of {origin} has")
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
            columns={key.rpartition(".")[2]: _value(fields, key) for key in self.columns},
        )
        check_encodable(question, place)
        return question, repaired != messages

    def _content(self, message: Mapping[str, str]) -> str:
        content = repair_commands(message["content"]) if self.repair else message["content"]
        # Rows mostly share their system message: it is kept once.
        return sys.intern(content) if message["role"] == "system" else content

    def without_answers(self) -> TableQuestions:
        source = copy(self)
        object.__setattr__(source, "needs_answers", False)
        return source

    def _answers(self, fields: Fields) -> tuple[str, ...]:
        value = fields[self.answer_key]
        if not self.needs_answers and (value is MISSING or value in (None, "", [])):
            return ()
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


def _value(fields: Fields, key: str) -> Any:
    value = fields[key]
    return None if value is MISSING else value

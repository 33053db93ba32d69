"""What every prompt source offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from appo.core.foreign_json import is_encodable
from appo.core.registry import Registry
from appo.environments.base import Decision

T = TypeVar("T")

Split = Literal["train", "validation", "test"]
"""What a question is for."""

UnusableReason = Literal[
    "unreadable",
    "no_question",
    "no_answer",
    "broken_answer",
    "no_response",
    "template",
    "no_id",
    "duplicate_id",
    "no_source",
    "held_out",
    "too_long",
]
"""Why a row makes no prompt, or none that can be learned: `held_out` is a training question that stands in another
split of its source, `template` a conversation that the chat template refuses or changes."""


@dataclass(frozen=True)
class Question:
    """A question before it is tokenized.

    Attributes:
        id: unique in its source and stable over runs.
        messages: the conversation so far, ``{"role": ..., "content": ...}`` each, as chat templates take it.
        answers: accepted answers; none where the source is one `without_answers`, else at least one.
        source: the part of the data it comes from; metrics are also reported by source.
        part: the part of a mixture it is drawn with; see `PromptSource.weights`.
        origin: file or dataset it was read from; empty for what is generated.
        row: its number in `origin`; lines of text count from 1, rows of tables from 0.
        is_public: whether logs and files may hold its text, and that of responses to it.
        tool_instructions: whether its prompt holds what the call syntax says of tools.
        columns: further fields of its row, by name, for rewards.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    answers: tuple[str, ...]
    source: str = ""
    part: str = ""
    origin: str = ""
    row: int | None = None
    is_public: bool = True
    tool_instructions: bool = True
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def text(self) -> str:
        """What the user asks last."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class UnusableRow:
    """A row of the data that makes no prompt, or no conversation.

    Attributes:
        origin: file or dataset.
        row: its number there; lines of text count from 1, rows of tables from 0. None for what is generated.
        reason: what is wrong, in one word.
        message: what is wrong, in a sentence that names key, rule and value.
    """

    origin: str
    row: int | None
    reason: UnusableReason
    message: str


class UnusableRowError(ValueError):
    """A row makes no question.

    Args:
        reason: why, in one word.
        message: why, in a sentence.
    """

    def __init__(self, reason: UnusableReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_encodable(question: Question, place: str) -> None:
    """Refuses texts with half of a surrogate pair, which JSON may hold and no file or tokenizer takes.

    Args:
        question: of a row.
        place: what messages call the row.

    Raises:
        UnusableRowError: if there is one.
    """
    texts = (question.id, question.source, *question.answers, *(text for m in question.messages for text in m.values()))
    if not all(map(is_encodable, texts)):
        rule = "must have texts that UTF-8 can encode, got half of a surrogate pair"
        raise UnusableRowError("unreadable", f"{place} {rule}")


class PromptSource(ABC):
    """Where questions come from."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits there are; training goes without validation where there is none."""
        return ("train", "validation", "test")

    @property
    def evaluation_splits(self) -> tuple[Split, ...]:
        """Those whose questions, together, must not be trained on."""
        return tuple(split for split in self.splits if split != "train")

    @property
    def weights(self) -> Mapping[str, float]:
        """The parts that training questions are drawn from and how often; one part draws from all alike."""
        return {"": 1.0}

    @abstractmethod
    def load(self, split: Split) -> Sequence[Question]:
        """The questions of one split, in a fixed order; splits share no question.

        Raises:
            ValueError: if the split has no question, or one cannot be used.
            FileNotFoundError: if a file is missing.
        """

    def decisions(self, question: str, tokens: Sequence[str], is_sampled: Sequence[bool]) -> Sequence[Decision]:
        """The tokens of a trajectory that decide, in their order; none where the source does not know them.

        Args:
            question: that was asked.
            tokens: the text of every position, prompt included.
            is_sampled: whether the policy sampled it.
        """
        return ()

    def without_answers(self) -> PromptSource:
        """The same source for those who only ask: a row without an answer is a question as well, if it can be."""
        return self

    def rows(self, split: Split) -> Iterator[Question | UnusableRow]:
        """The rows of one split, in a fixed order: each is a question, or the reason why it is none.

        Raises:
            ValueError: if the split has no row.
            FileNotFoundError: if a file is missing.
        """
        yield from self.load(split)


PROMPT_SOURCES: Registry[PromptSource] = Registry("prompt source", group="appo.prompts")
"""Prompt sources by class name, those of plug-ins included."""


def is_message(value: Any) -> bool:
    """Whether a value is a message as chat templates take it: an object with the texts `role` and `content`."""
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def to_messages(value: object) -> tuple[dict[str, str], ...] | None:
    """The conversation that a field holds: a text is what the user asks; None if the field is neither.

    The last message is the user's and not empty.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, Sequence) or not value or not all(map(is_message, value)):
        return None
    if value[-1]["role"] != "user" or not value[-1]["content"].strip():
        return None
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def with_system_prompt(messages: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation that a system message opens, in place of its own if it has one."""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    return [{"role": "system", "content": text}, *rest]


def only_usable(rows: Iterable[T | UnusableRow]) -> list[T]:
    """What rows make that must all be usable: questions or conversations.

    Raises:
        ValueError: if one is not; says of all of them what is wrong.
    """
    unusable: list[UnusableRow] = []
    made = list(usable(rows, unusable))
    if unusable:
        raise ValueError(refusal(unusable))
    return made


def usable(rows: Iterable[T | UnusableRow], unusable: list[UnusableRow]) -> Iterator[T]:
    """What the usable ones among rows make; the others go to the end of `unusable`."""
    for row in rows:
        if isinstance(row, UnusableRow):
            unusable.append(row)
        else:
            yield row


def refusal(unusable: Sequence[UnusableRow]) -> str:
    """What to tell a user whose data must be usable as a whole and is not."""
    if len(unusable) == 1:
        return f"{unusable[0].message}; data.unusable_rows=skip would leave the row out"
    return (
        f"{unusable[0].message}; data.unusable_rows=skip would leave out this row and {len(unusable) - 1} more: "
        f"{summarize(unusable, max_numbers=10)}"
    )


def summarize(unusable: Sequence[UnusableRow], max_numbers: int | None = None) -> str:
    """Counts rows by reason and origin, with their numbers: ``2 no_answer (train.csv: 3, 17)``.

    Args:
        unusable: the rows.
        max_numbers: row numbers given for each reason and origin; none gives all.
    """
    groups: dict[tuple[str, str], list[int | None]] = {}
    for row in unusable:
        groups.setdefault((row.reason, row.origin), []).append(row.row)
    return ", ".join(
        f"{len(numbers)} {reason} ({origin or 'generated'}{_listed(numbers, max_numbers)})"
        for (reason, origin), numbers in groups.items()
    )


def _listed(numbers: Sequence[int | None], max_numbers: int | None) -> str:
    shown = [str(number) for number in numbers[:max_numbers] if number is not None]
    if not shown:
        return ""
    return f": {', '.join(shown)}{', ...' if len(shown) < len(numbers) else ''}"

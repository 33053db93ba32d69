"""From the rows of a source to prompts, with an account of those that are left out."""

from __future__ import annotations

import json
import logging
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from appo.core.trajectory import Prompt
from appo.prompts.base import PromptSource, Question, Split, T, UnusableRow, refusal, summarize, usable
from appo.prompts.contamination import BenchmarkIndex, ContaminatedRow

log = logging.getLogger(__name__)

CHUNK_ROWS = 1024
"""Questions that are tokenized at once."""


class PromptStore:
    """Tokenized questions, all token ids in one array; a `Prompt` is made when it is asked for."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.parts: list[str] = []
        self._texts: list[str] = []
        self._answers: list[tuple[str, ...]] = []
        self._sources: list[str] = []
        self._are_public = array("b")
        self._columns: list[Mapping[str, Any]] = []
        self.takes_instructions = False
        """Whether a question among them may be told of tools in words."""
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
        self._columns.append(question.columns)
        self.takes_instructions |= question.tool_instructions
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
            self._columns[number],
        )

    def __iter__(self) -> Iterator[Prompt]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True)
class RowAccount:
    """What became of the rows of a split that are not plainly used.

    Attributes:
        unusable: the rows of which nothing can be made.
        contaminated: the training questions that stand in a benchmark.
    """

    unusable: list[UnusableRow] = field(default_factory=list)
    contaminated: list[ContaminatedRow] = field(default_factory=list)

    def kept(self, rows: Iterable[T], find: Callable[[T], ContaminatedRow | None], removes: bool) -> Iterator[T]:
        """Passes rows on, and takes in those that stand in a benchmark.

        Args:
            rows: questions, or conversations, to train on.
            find: the record of one that stands in a benchmark; None for others.
            removes: leaves such rows out.
        """
        for row in rows:
            found = find(row)
            if found is not None:
                self.contaminated.append(found)
            if found is None or not removes:
                yield row

    def describe(self) -> str:
        """Counts them, with one of the reasons in full."""
        left_out = summarize(self.unusable, max_numbers=10) or "none"
        example = f": {self.unusable[0].message}" if self.unusable else ""
        return f"{len(self.contaminated)} that stand in a benchmark, and unusable rows: {left_out}{example}"


@dataclass(frozen=True)
class LoadedPrompts(RowAccount):
    """The prompts of a split and what became of the other rows.

    Attributes:
        prompts: in the order of the source.
    """

    prompts: PromptStore = field(default_factory=PromptStore)


@dataclass(frozen=True)
class PromptLoader:
    """Reads, tokenizes and checks the questions of a source.

    Attributes:
        encode: token ids of each question.
        max_tokens: longest prompt.
        unusable_rows: `error` refuses data with an unusable row, `skip` leaves the row out.
        benchmarks: questions that training questions are compared with.
        contaminated_rows: `report` keeps training questions that stand in a benchmark, `remove` leaves them out.
    """

    encode: Callable[[Sequence[Question]], list[list[int]]]
    max_tokens: int
    unusable_rows: Literal["error", "skip"] = "error"
    benchmarks: Sequence[PromptSource] = ()
    contaminated_rows: Literal["report", "remove"] = "report"

    def __call__(self, source: PromptSource, split: Split) -> LoadedPrompts:
        """The prompts of one split.

        Raises:
            ValueError: if a row is unusable and must not be, or none is left.
            FileNotFoundError: if a file is missing.
        """
        loaded = LoadedPrompts()
        rows = source.load(split) if self.unusable_rows == "error" else source.rows(split)
        questions = usable(rows, loaded.unusable)
        if split == "train" and self.benchmarks:
            find = BenchmarkIndex(self.benchmarks).find
            questions = loaded.kept(questions, find, self.contaminated_rows == "remove")
        while chunk := list(islice(questions, CHUNK_ROWS)):
            for question, token_ids in zip(chunk, self.encode(chunk), strict=True):
                if len(token_ids) > self.max_tokens:
                    loaded.unusable.append(self._too_long(question, len(token_ids)))
                else:
                    loaded.prompts.append(question, token_ids)
        if loaded.unusable and self.unusable_rows == "error":
            raise ValueError(refusal(loaded.unusable))
        if not loaded.prompts:
            raise ValueError(f"data.source must have a usable {split} question, got {loaded.describe()}")
        return loaded

    def _too_long(self, question: Question, num_tokens: int) -> UnusableRow:
        message = (
            f"prompts must have at most data.max_prompt_tokens = {self.max_tokens} tokens, question {question.id!r} "
            f"has {num_tokens}"
        )
        return UnusableRow(question.origin, question.row, "too_long", message)


def write_account(loaded: RowAccount, split: Split, is_removed: bool, folder: Path | None) -> None:
    """Says in the log, and row by row in files, what became of rows that are not plainly used.

    Args:
        loaded: what was made of a split.
        split: the split.
        is_removed: whether contaminated questions were left out.
        folder: where ``skipped_rows_<split>.jsonl`` and ``contaminated_rows.jsonl`` go, in place of older ones; none
            gives all row numbers in the log.
    """
    shown = None if folder is None else 10
    skipped = [{"split": split, **asdict(row)} for row in loaded.unusable]
    place = _write(folder, f"skipped_rows_{split}.jsonl", skipped)
    if skipped:
        what = summarize(loaded.unusable, shown)
        log.warning("%s: %d rows are left out: %s%s", split, len(skipped), what, place)
    if split != "train":
        return
    found = [{**asdict(row), "removed": is_removed} for row in loaded.contaminated]
    place = _write(folder, "contaminated_rows.jsonl", found)
    if found:
        counts = Counter(row.benchmark for row in loaded.contaminated)
        numbers = [row.id for row in loaded.contaminated]
        log.warning(
            "train: %d questions stand in a benchmark and are %s: %s (ids %s%s)%s",
            len(found),
            "left out" if is_removed else "trained on; see data.contaminated_rows",
            ", ".join(f"{count} {name}" for name, count in counts.items()),
            ", ".join(numbers[:shown]),
            ", ..." if shown is not None and len(numbers) > shown else "",
            place,
        )


def _write(folder: Path | None, name: str, records: Sequence[dict[str, object]]) -> str:
    if folder is None:
        return ""
    path = folder / name
    if not records:
        # What an earlier run left out says nothing about this one.
        path.unlink(missing_ok=True)
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return f"; listed in {path}"

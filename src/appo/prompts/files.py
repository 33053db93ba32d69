"""Questions from JSON, CSV and Parquet files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from appo.core.csv_fields import long_fields
from appo.core.foreign_json import parse_json
from appo.core.foreign_parquet import parquet_rows
from appo.prompts.base import PROMPT_SOURCES, Split
from appo.prompts.fields import MISSING, lookup
from appo.prompts.rows import Record, TableQuestions

BATCH_ROWS = 1024
"""Rows that are decoded at once."""


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class JsonlQuestions(TableQuestions):
    """One question a line, each line a JSON object; a file a split. Blank lines are skipped.

    A question of the training file must not stand in the other two; those may be the same file.
    """

    unit: ClassVar[str] = "line"

    def records(self, split: Split) -> Iterator[Record]:
        return jsonl_records(existing_file(split, self.location(split)), self.quote_rows)


def jsonl_records(path: Path, quote: bool = True) -> Iterator[Record]:
    """The lines of a file, each a JSON object; blank ones are skipped.

    Args:
        path: of the file.
        quote: whether what is wrong with a line may show its text.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parse(line, number, quote)


def _parse(line: bytes, number: int, quote: bool) -> Record:
    try:
        values = parse_json(line)
    except ValueError as error:
        # The message of the error holds no text of the line.
        return Record(number, {}, problem=f"be a JSON object: {_without_text(error)}")
    if not isinstance(values, dict):
        shown = line[:80].decode(errors="replace").strip() if quote else f"a {type(values).__name__}"
        return Record(number, {}, problem=f"be a JSON object, got {shown}")
    return Record(number, values)


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class JsonQuestions(TableQuestions):
    """One question an object of a JSON list; a file a split."""

    list_key: str | None = None
    """Key of the list in the file; `null`: the file itself is the list."""

    def records(self, split: Split) -> Iterator[Record]:
        return json_records(existing_file(split, self.location(split)), split, self.list_key)


def json_records(path: Path, split: Split, list_key: str | None = None) -> Iterator[Record]:
    """The objects of a JSON list.

    Args:
        path: of the file.
        split: the option that names it.
        list_key: key of the list in the file; None: the file itself is the list.

    Raises:
        ValueError: if there is none.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{split} must be a JSON file, got {path}: {_without_text(error)}") from None
    rows: Any = content
    if list_key is not None:
        rows = lookup(content, list_key) if isinstance(content, dict) else MISSING
    if not isinstance(rows, list):
        where = "" if list_key is None else f" under {list_key}"
        raise ValueError(f"{split} must be a file with a JSON list{where}, got none in {path}")
    for number, values in enumerate(rows):
        if isinstance(values, dict):
            yield Record(number, values)
        else:
            yield Record(number, {}, problem=f"be a JSON object, got a {type(values).__name__}")


def _without_text(error: ValueError) -> str:
    """What is wrong with JSON, without a word of it."""
    return type(error).__name__ if isinstance(error, UnicodeDecodeError) else str(error)


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class CsvQuestions(TableQuestions):
    """One question a row of a CSV file in UTF-8, whose first row names the columns; a file a split."""

    delimiter: str = ","
    """What stands between two columns, one character."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, got {self.delimiter!r}")

    def records(self, split: Split) -> Iterator[Record]:
        path = existing_file(split, self.location(split))
        with path.open(encoding="utf-8-sig", newline="") as lines, long_fields():
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            try:
                columns = next(reader, [])
                for number, row in enumerate(filter(None, reader)):
                    yield _record(number, columns, row)
            except (csv.Error, UnicodeDecodeError) as error:
                what = error if isinstance(error, csv.Error) else "a byte that is no UTF-8"
                raise ValueError(f"{split} must be a CSV file, got {path}: line {reader.line_num}: {what}") from None


def _record(number: int, columns: list[str], row: list[str]) -> Record:
    if len(row) != len(columns):
        return Record(number, {}, problem=f"have the {len(columns)} columns of the first row, got {len(row)}")
    return Record(number, dict(zip(columns, row, strict=True)))


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class ParquetQuestions(TableQuestions):
    """One question a row of a Parquet file; a file a split. Needs the extra `data`."""

    def records(self, split: Split) -> Iterator[Record]:
        path = existing_file(split, self.location(split))
        rows = parquet_rows(path, split, type(self).__name__, "data", BATCH_ROWS)
        for number, values in enumerate(rows):
            yield Record(number, values)


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class ReleaseQuestions(ParquetQuestions):
    """Questions in the layout of the authors' training files.

    A row has `data_source`, `prompt` (a system and a user message), `ability`, `reward_model.ground_truth` and
    `extra_info`. Needs the extra `data`.
    """

    question_key: str = "prompt"
    """Key of the question: a text, or a list of messages with `role` and `content` that ends with the user's."""
    answer_key: str = "reward_model.ground_truth"
    """Key of the accepted answers: a text, a number, or a list of them."""
    id_key: str | None = "extra_info.index"
    """Key of the id, a text or a number unique in the file; `null`: the number of the row."""
    source_key: str | None = "data_source"
    """Key of the part of the data a question comes from, by which metrics are also reported."""


def existing_file(split: Split, name: str) -> Path:
    """The path of a file that must be there.

    Raises:
        FileNotFoundError: if it is not; `split` is the option that names it.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{split} must name a file, got {name!r}, which is none")
    return path

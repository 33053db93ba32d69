"""Questions from CSV and Parquet files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from appo.core.extras import import_extra
from appo.prompts.base import PROMPT_SOURCES, Split
from appo.prompts.jsonl import existing_file
from appo.prompts.rows import Record, TableQuestions

BATCH_ROWS = 1024
"""Rows that are decoded at once."""


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
        with path.open(encoding="utf-8-sig", newline="") as lines:
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
        parquet = import_extra("pyarrow.parquet", type(self).__name__, "data")
        try:
            file = parquet.ParquetFile(path)
        except import_extra("pyarrow", type(self).__name__, "data").ArrowInvalid as error:
            raise ValueError(f"{split} must be a Parquet file, got {path}: {error}") from error
        number = 0
        with file:
            for batch in file.iter_batches(BATCH_ROWS):
                for values in batch.to_pylist():
                    yield Record(number, values)
                    number += 1


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
    """Key of the id, a text or a number unique in the file; without one the number of the row is the id."""
    source_key: str | None = "data_source"
    """Key of the part of the data a question comes from, by which metrics are also reported."""

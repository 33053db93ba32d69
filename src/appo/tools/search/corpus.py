"""Reads the passages of a corpus from a file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appo.core.csv_fields import long_fields
from appo.core.foreign_json import beginning, is_encodable, listed, parse_json
from appo.core.foreign_parquet import parquet_rows


@dataclass(frozen=True)
class Passage:
    """A piece of a corpus.

    Attributes:
        id: unique in the corpus.
        text: with its title, if it has one, in front.
    """

    id: str
    text: str


@dataclass(frozen=True)
class Columns:
    """Which columns of a file make a passage.

    Attributes:
        text: of the text.
        title: of the title; None if there is none.
        id: of the id; None numbers the rows from 1 on.
    """

    text: str
    title: str | None
    id: str | None

    def passage(self, row: Mapping[str, Any], number: int, path: Path) -> Passage:
        """Makes a passage of a row.

        Raises:
            ValueError: if a column is missing or holds something else than text; an id may be a number.
        """
        text = self._value(row, self.text, number, path)
        title = self._value(row, self.title, number, path) if self.title is not None else ""
        id = self._value(row, self.id, number, path) if self.id is not None else str(number)
        return Passage(id, ": ".join(filter(None, (title, text))))

    def _value(self, row: Mapping[str, Any], column: str, number: int, path: Path) -> str:
        if column not in row:
            raise ValueError(f"row {number} of {path} must have a column {column!r}, got only {listed(map(repr, row))}")
        value = row[column]
        if column == self.id and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise ValueError(f"{column!r} in row {number} of {path} must be text, got {beginning(value)}")
        if not is_encodable(value):
            shown = beginning(value)
            raise ValueError(f"{column!r} in row {number} of {path} must be text that UTF-8 can encode, got {shown}")
        return value.strip()


def read_passages(path: Path, columns: Columns) -> Iterator[Passage]:
    """Yields the passages of a file in its order, as they are read; a passage without any text is left out.

    Args:
        path: ends in ``.jsonl`` (an object a line), ``.csv`` or ``.tsv`` (with a header), or ``.parquet``.
        columns: which of them to read.

    Raises:
        ValueError: if the file is of another kind, a row is no row, or columns are not there or hold no text.
        ImportError: if a parquet file cannot be read for want of pyarrow.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"corpus must end in {', '.join(readers)}, got {str(path)!r}")
    for number, row in readers[path.suffix](path):
        passage = columns.passage(row, number, path)
        if passage.text:
            yield passage


def _read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise ValueError(f"row {number} of {path} must be a JSON object: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"row {number} of {path} must be a JSON object, got {type(row).__name__}")
            yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as lines, long_fields():
        rows = csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
        yield from enumerate(rows, start=1)


def _read_parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    yield from enumerate(parquet_rows(path, "corpus", f"the corpus {path}", "search"), start=1)

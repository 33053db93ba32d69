"""Questions from JSON: an object a line, or a list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from appo.prompts.base import PROMPT_SOURCES, Split
from appo.prompts.columns import MISSING, lookup
from appo.prompts.rows import Record, TableQuestions


def existing_file(split: Split, name: str) -> Path:
    """The path of a file that must be there.

    Raises:
        FileNotFoundError: if it is not; `split` is the option that names it.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{split} must name a file, got {name!r}, which is none")
    return path


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class JsonlQuestions(TableQuestions):
    """One question a line, each line a JSON object; a file a split. Blank lines are skipped.

    A question of the training file must not stand in the other two; those may be the same file.
    """

    unit: ClassVar[str] = "line"

    def records(self, split: Split) -> Iterator[Record]:
        with existing_file(split, self.location(split)).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield self._parse(line, number)

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            values = json.loads(line)
        except ValueError as error:
            # The message of the error holds no text of the line.
            return Record(number, {}, problem=f"be a JSON object: {_without_text(error)}")
        if not isinstance(values, dict):
            shown = line[:80].decode(errors="replace").strip() if self.quote_rows else f"a {type(values).__name__}"
            return Record(number, {}, problem=f"be a JSON object, got {shown}")
        return Record(number, values)


@PROMPT_SOURCES.register
@dataclass(frozen=True)
class JsonQuestions(TableQuestions):
    """One question an object of a JSON list; a file a split."""

    list_key: str | None = None
    """Key of the list in the file; none takes the file itself as the list."""

    def records(self, split: Split) -> Iterator[Record]:
        path = existing_file(split, self.location(split))
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{split} must be a JSON file, got {path}: {_without_text(error)}") from None
        rows: Any = content
        if self.list_key is not None:
            rows = lookup(content, self.list_key) if isinstance(content, dict) else MISSING
        if not isinstance(rows, list):
            where = "" if self.list_key is None else f" under {self.list_key}"
            raise ValueError(f"{split} must be a file with a JSON list{where}, got none in {path}")
        for number, values in enumerate(rows):
            if isinstance(values, dict):
                yield Record(number, values)
            else:
                yield Record(number, {}, problem=f"be a JSON object, got a {type(values).__name__}")


def _without_text(error: ValueError) -> str:
    """What is wrong with JSON, without a word of it."""
    return str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__

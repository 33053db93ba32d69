"""Training questions that are questions of a benchmark."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from appo.prompts.base import PromptSource, Question

_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d]+|[-+*/=<>^%!|]")
_HYPHEN = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")


@dataclass(frozen=True)
class ContaminatedRow:
    """A training question that equals one of a benchmark after normalization. It holds no text of either.

    Attributes:
        id: of the training question.
        origin: file or dataset of the training question; empty if it is generated.
        row: its number there.
        benchmark: what the other question is reported under, or its file.
        benchmark_row: the other question's number there.
    """

    id: str
    origin: str
    row: int | None
    benchmark: str
    benchmark_row: int | None


def normalize_question(text: str) -> str:
    """Brings a question into the form in which equal questions are equal strings.

    Case, white space, punctuation and Unicode variants go; numbers and the signs of arithmetic stay, so that ``x-1``
    is not ``x+1``.

    Args:
        text: of the question.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_WORD.findall(_HYPHEN.sub(" ", text)))


class BenchmarkIndex:
    """The questions of benchmarks, as digests.

    Args:
        benchmarks: sources whose validation and test questions must not be trained on.
    """

    def __init__(self, benchmarks: Iterable[PromptSource]) -> None:
        self._places: dict[bytes, tuple[str, int | None]] = {}
        for source in benchmarks:
            for split in source.evaluation_splits:
                for row in source.rows(split):
                    if isinstance(row, Question):
                        self._places.setdefault(_digest(row.text), (row.source or row.origin, row.row))

    def find(self, question: Question) -> ContaminatedRow | None:
        """The record of a training question that stands in a benchmark; None for one that does not."""
        return self.find_any([question.text], question.id, question.origin, question.row)

    def find_any(self, texts: Iterable[str], id: str, origin: str, row: int | None) -> ContaminatedRow | None:
        """The record of a row that asks what stands in a benchmark; None for one that does not.

        Args:
            texts: what the row asks.
            id: of the row.
            origin: file or dataset of the row.
            row: its number there.
        """
        places = (self._places.get(_digest(text)) for text in texts)
        return next((ContaminatedRow(id, origin, row, *place) for place in places if place is not None), None)


def _digest(text: str) -> bytes:
    return blake2b(normalize_question(text).encode(), digest_size=16).digest()

"""Rows that begin with the same tokens as a tree, in which each token that they share stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from appo.core.buckets import check_budget, next_fit

NO_SEGMENT = -1
"""The parent of a segment that begins a row, and the last segment of a row without tokens."""

NOWHERE = -1
"""Where padding stands in the packed order."""

_MIN_TOKENS = 16
"""Fewest tokens that a segment may share: shorter ones cost more calls of the attention than they save tokens."""

_MIN_SAVED = 0.03
"""Least share that a segment must save of the tokens of its rows behind their fork, or they are left apart: attention
to it and to the rest is computed in parts, which have to be brought together."""


@dataclass(frozen=True)
class Segment:
    """Tokens between two forks, which all rows behind it share.

    Attributes:
        row: one of the rows.
        begin: position of its first token in a row, and the number of tokens of its ancestors.
        end: position after its last token.
        parent: number of the segment before it; `NO_SEGMENT` if it begins the rows.
        first: where its first token stands in the packed order.
        stop: where the first token behind all of its descendants stands.
    """

    row: int
    begin: int
    end: int
    parent: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """Rows as segments, by their token ids and not by how they came to be.

    In the packed order a segment stands before its descendants, and they stand before all others.

    Attributes:
        segments: each behind its parent, in the packed order.
        places: ``[B, T]`` int64 on the CPU, where each token stands in the packed order; `NOWHERE` on padding.
        last_segments: of each row.
    """

    segments: Sequence[Segment]
    places: Tensor
    last_segments: Sequence[int]

    @classmethod
    def of(cls, token_ids: Tensor, lengths: Tensor) -> PrefixTree:
        """Finds what rows share from their begin on, as far as it pays.

        Args:
            token_ids: ``[B, T]`` int64, right-padded.
            lengths: ``[B]`` int64, tokens before the padding.
        """
        ends = lengths.tolist()
        # Bytes of the highest order first are sorted as the numbers are.
        rows = token_ids.cpu().numpy().astype(">u4")
        texts = [row[:end].tobytes() for row, end in zip(rows, ends, strict=True)]
        order = sorted(range(len(ends)), key=texts.__getitem__)
        shared = np.array([0, *(_num_equal(rows[a, : ends[a]], rows[b, : ends[b]]) for a, b in pairwise(order))])
        segments: list[Segment] = []
        places = np.full(rows.shape, NOWHERE, dtype=np.int64)
        last_segments = [NO_SEGMENT] * len(ends)
        # Rows from a first to a last one in order, those of a subtree; where it begins; the segment before it.
        subtrees = [(0, len(order), 0, NO_SEGMENT)] if order else []
        while subtrees:
            first, last, begin, parent = subtrees.pop()
            members = order[first:last]
            end = _end_of_segment(begin, [ends[row] for row in members], shared[first + 1 : last])
            if end > begin:
                place = segments[-1].first + len(segments[-1]) if segments else 0
                segments.append(Segment(members[0], begin, end, parent, place, place + end - begin))
                places[members, begin:end] = np.arange(place, place + end - begin)
                begin, parent = end, len(segments) - 1
            if begin == max(ends[row] for row in members):
                for row in members:
                    last_segments[row] = parent
                continue
            forks = [first, *_forks(shared, first, last), last]
            subtrees += [(a, b, begin, parent) for a, b in reversed(list(pairwise(forks)))]
        return cls(_with_descendants(segments), torch.from_numpy(places), last_segments)

    @property
    def num_tokens(self) -> int:
        """Distinct tokens."""
        return sum(len(segment) for segment in self.segments)

    @property
    def num_row_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(self.segments[last].end for last in self.last_segments if last != NO_SEGMENT)

    @property
    def num_pairs(self) -> int:
        """Pairs of a distinct token and a token of its row up to the end of its segment, as attention is counted."""
        return sum(len(segment) * segment.end for segment in self.segments)

    @property
    def is_shared(self) -> bool:
        """Whether any two rows share anything."""
        return self.num_tokens < self.num_row_tokens

    @cached_property
    def rows_and_positions(self) -> tuple[Tensor, Tensor]:
        """``[N]`` row and ``[N]`` position of the distinct tokens, in the packed order."""
        rows = torch.tensor([segment.row for segment in self.segments], dtype=torch.int64)
        lengths = torch.tensor([len(segment) for segment in self.segments], dtype=torch.int64)
        positions = [torch.arange(segment.begin, segment.end) for segment in self.segments]
        return rows.repeat_interleave(lengths), torch.cat(positions)

    def lineage(self, number: int) -> list[Segment]:
        """A segment behind its ancestors: all tokens that its own last one sees."""
        found = []
        while number != NO_SEGMENT:
            found.append(self.segments[number])
            number = found[-1].parent
        return found[::-1]

    def buckets(self, max_tokens: int) -> list[list[int]]:
        """Partitions the rows such that the distinct tokens of each part stay within a budget.

        Subtrees stay together where they fit, large ones first. One that is too large is cut at the forks nearest to
        its root, whose prefix every part repeats. A longer row gets a bucket of its own.

        Args:
            max_tokens: distinct ones of a bucket.

        Raises:
            ValueError: if `max_tokens` is not positive.
        """
        check_budget(max_tokens)
        # Of every segment and, by `NO_SEGMENT` at the end, of the roots: parts of the rows that end there and behind.
        parts: list[list[tuple[int, list[int]]]] = [[] for _ in (*self.segments, NO_SEGMENT)]
        for row, last in enumerate(self.last_segments):
            parts[last].append((0, [row]))
        for number in reversed(range(len(self.segments))):
            segment = self.segments[number]
            for size, rows in next_fit(parts[number], max_tokens - segment.end):
                parts[segment.parent].append((size + len(segment), rows))
        return [rows for _, rows in next_fit(parts[NO_SEGMENT], max_tokens)]


def _num_equal(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> int:
    """Counts the tokens that two rows begin with alike."""
    num = min(len(a), len(b))
    differs = a[:num] != b[:num]
    return int(differs.argmax()) if differs.any() else num


def _end_of_segment(begin: int, ends: Sequence[int], shared: NDArray[np.int64]) -> int:
    """Where a segment ends that rows begin with, of which each shares so much with the one before; `begin`: none."""
    end = int(shared.min()) if len(shared) else ends[0]
    if end == max(ends):
        return end
    saved = (len(ends) - 1) * (end - begin)
    pays = end - begin >= _MIN_TOKENS and saved >= _MIN_SAVED * (sum(ends) - len(ends) * begin)
    return end if pays else begin


def _forks(shared: NDArray[np.int64], first: int, last: int) -> list[int]:
    """The numbers of the rows that share least with the one before."""
    least = shared[first + 1 : last].min()
    return [first + 1 + int(i) for i in (shared[first + 1 : last] == least).nonzero()[0]]


def _with_descendants(segments: Sequence[Segment]) -> list[Segment]:
    stops = [segment.stop for segment in segments]
    for number in reversed(range(len(segments))):
        if (parent := segments[number].parent) != NO_SEGMENT:
            stops[parent] = max(stops[parent], stops[number])
    return [Segment(s.row, s.begin, s.end, s.parent, s.first, stop) for s, stop in zip(segments, stops, strict=True)]

"""Texts and bytes that are likely to be read wrongly."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

LONGEST = 32_000
"""Characters of a text: more than a response has."""

_TIMES = st.one_of(st.just(1), st.integers(1, 4), st.integers(1, 4), st.sampled_from([30, 400, 3000, LONGEST]))


def texts(parts: Sequence[str]) -> SearchStrategy[str]:
    """Texts of some parts and of any characters: short ones, repeated ones, nested ones.

    Args:
        parts: that mean something to the reader.
    """
    part = st.one_of(st.sampled_from(parts), st.sampled_from(parts), st.text(max_size=4))
    piece = st.lists(part, max_size=5).map("".join)
    repeated = st.builds(_repeat, piece, _TIMES)
    nested = st.builds(lambda a, b, c, n: _repeat(a, n) + b + _repeat(c, n), piece, piece, piece, _TIMES)
    return st.lists(st.one_of(piece, piece, repeated, nested), max_size=5).map(lambda each: "".join(each)[:LONGEST])


def changed(seeds: Sequence[bytes]) -> SearchStrategy[str]:
    """Bytes, as texts, that differ from some good ones in a few places.

    Args:
        seeds: good ones.
    """
    edit = st.tuples(st.floats(0.0, 1.0), st.integers(0, 8), st.binary(max_size=8), st.integers(0, 3))
    return st.builds(_edited, st.sampled_from(seeds), st.lists(edit, max_size=6))


def as_bytes(text: str) -> bytes:
    """The bytes that a text of `changed` stands for; of any other, its UTF-8."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _repeat(text: str, times: int) -> str:
    return text * min(times, LONGEST // max(len(text), 1))


def _edited(seed: bytes, edits: Sequence[tuple[float, int, bytes, int]]) -> str:
    data = bytearray(seed)
    for where, num_removed, added, kind in edits:
        start = round(where * len(data))
        match kind:
            case 0:
                data[start : start + num_removed] = added
            case 1:
                data[start : start + len(added)] = added
            case 2:
                data[start:start] = data[start : start + 64 * num_removed]
            case _:
                del data[start:]
    return data.decode("latin-1")

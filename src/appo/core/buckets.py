"""Partitions of rows such that the tokens of each part stay within a budget."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def length_buckets(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Partitions rows, longest first, such that their tokens stay within a budget.

    Args:
        lengths: ``[B]`` int64 tokens of each row.
        max_tokens: of one bucket; a longer row gets a bucket of its own.

    Returns:
        Row numbers, ``[B_i]`` int64 each; together every row once.

    Raises:
        ValueError: if `max_tokens` is not positive.
    """
    check_budget(max_tokens)
    parts = ((length, [row]) for row, length in enumerate(lengths.tolist()))
    return [torch.tensor(rows, device=lengths.device) for _, rows in next_fit(parts, max_tokens)]


def check_budget(max_tokens: int) -> None:
    """Refuses a budget that holds nothing."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be positive, got {max_tokens}")


def next_fit(parts: Iterable[tuple[int, list[int]]], max_tokens: int) -> list[tuple[int, list[int]]]:
    """Joins parts, largest first, while they stay within a budget.

    Args:
        parts: tokens and row numbers of each; of equal ones, that of the lowest first row comes first.
        max_tokens: of what is joined; a part that is larger stays alone.
    """
    joined: list[tuple[int, list[int]]] = []
    for size, rows in sorted(parts, key=lambda part: (-part[0], part[1][0])):
        if joined and joined[-1][0] + size <= max_tokens:
            joined[-1] = (joined[-1][0] + size, [*joined[-1][1], *rows])
        else:
            joined.append((size, rows))
    return joined

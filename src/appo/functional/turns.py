"""Turns of a response: runs of sampled tokens between tool results."""

from __future__ import annotations

import torch
from torch import Tensor

NO_TURN = -1
"""The turn of a token that was not sampled."""


def turn_starts(mask: Tensor) -> Tensor:
    """The first token of every turn.

    Args:
        mask: ``[B, T]`` bool, True on sampled tokens.

    Returns:
        ``[B, T]`` bool, True on sampled tokens behind one that was not sampled.
    """
    before = torch.zeros_like(mask)
    before[:, 1:] = mask[:, :-1]
    return mask & ~before


def turn_numbers(mask: Tensor) -> Tensor:
    """The turn that each token belongs to.

    Args:
        mask: ``[B, T]`` bool, True on sampled tokens.

    Returns:
        ``[B, T]`` int64, counted from 0 in each row; `NO_TURN` where `mask` is False.
    """
    return (turn_starts(mask).cumsum(-1) - 1).where(mask, NO_TURN)


def turn_openings(values: Tensor, mask: Tensor, window: int) -> Tensor:
    """Sums over the first tokens of the turn that each token belongs to.

    Args:
        values: ``[B, T]``.
        mask: ``[B, T]`` bool, True on sampled tokens.
        window: tokens of a turn that count, at most.

    Returns:
        ``[B, T]`` sums, the same on all tokens of a turn; 0 where `mask` is False.
    """
    turns = turn_numbers(mask)
    positions = torch.arange(mask.shape[-1], device=mask.device).expand_as(turns)
    first = positions.where(turn_starts(mask), 0).cummax(-1).values  # where the turn of each position begins
    counted = mask & (positions - first < window)
    slot = turns.clamp(min=0)
    sums = torch.zeros_like(values).scatter_add(-1, slot, values.where(counted, 0.0))
    return sums.gather(-1, slot).where(mask, 0.0)


def penalized_draws(odds: Tensor, group: Tensor, penalty: float, threshold: float) -> Tensor:
    """Draws one after the other within each group, where every hit makes the next one harder.

    ``hit_i = odds_i * max(0, 1 - penalty * l_i) >= threshold``, `l_i` the number of hits in a row just before.

    Linear in the number of draws; a step of the loop takes one draw of every group.

    Args:
        odds: ``[N]``, in the order of the draws.
        group: ``[N]`` int64, draws with the same value follow one another.
        penalty: of a hit in the row.
        threshold: positive, what a hit takes.

    Returns:
        ``[N]`` bool, True on hits.
    """
    _, index, count = group.unique(return_inverse=True, return_counts=True)
    # Row `g` of the table has the odds of group `g`, in the order of its draws.
    order = index.argsort(stable=True)
    number = torch.arange(len(group), device=group.device) - (count.cumsum(0) - count)[index[order]]
    table = odds.new_zeros(len(count), int(count.max()) if len(count) else 0)
    table[index[order], number] = odds[order]
    in_a_row = odds.new_zeros(len(count))
    hits = torch.zeros_like(table, dtype=torch.bool)
    for i, column in enumerate(table.unbind(-1)):
        hits[:, i] = column * (1.0 - penalty * in_a_row).clamp(min=0.0) >= threshold
        in_a_row = torch.where(hits[:, i], in_a_row + 1, 0.0)
    drawn = torch.zeros_like(group, dtype=torch.bool)
    drawn[order] = hits[index[order], number]
    return drawn

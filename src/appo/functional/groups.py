"""Statistics within groups of trajectories."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Std = Literal["population", "sample", "none"]
"""Divisor of a group's deviations: their standard deviation with `n` or `n - 1` in the denominator, or nothing."""


def group_standardize(x: Tensor, group: Tensor, eps: float = 1e-6, std: str = "population") -> Tensor:
    """Z-scores of `x` within each group; exactly 0 in a group of one, or of equal values.

    See "DeepSeekMath" (https://arxiv.org/abs/2402.03300), section 4.1.2.

    Args:
        x: ``[B]`` one value a trajectory.
        group: ``[B]`` int64, trajectories with the same value are compared.
        eps: added to the standard deviation.
        std: `population`, `sample`, or `none` for deviations from the mean alone.

    Returns:
        ``[B]`` z-scores.

    Raises:
        ValueError: if `std` is unknown.
    """
    if std not in ("population", "sample", "none"):
        raise ValueError(f"std must be population, sample or none, got {std!r}")
    groups, index = group.unique(return_inverse=True)
    count = torch.bincount(index, minlength=len(groups)).to(x.dtype)
    zeros = torch.zeros_like(count)
    # Counted from the smallest value: the mean of equal floats may differ from them in the last bit, and `eps` would
    # turn that into z-scores; the mean of zeros is 0.
    shifted = x - zeros.scatter_reduce(0, index, x, "amin", include_self=False)[index]
    centered = shifted - (zeros.index_add(0, index, shifted) / count)[index]
    if std == "none":
        return centered
    degrees = count if std == "population" else (count - 1).clamp(min=1)
    deviation = (zeros.index_add(0, index, centered.square()) / degrees).sqrt()
    return centered / (deviation[index] + eps)


def standardize_by(
    x: Tensor, group: Tensor, members: Tensor, eps: float = 1e-6, std: str = "population"
) -> tuple[Tensor, Tensor]:
    """Z-scores of `x` by the mean and standard deviation of some members of each group.

    Args:
        x: ``[B]`` one value a trajectory.
        group: ``[B]`` int64, trajectories with the same value are compared.
        members: ``[B]`` bool, True on those that mean and deviation are of.
        eps: added to the standard deviation.
        std: `population`, `sample`, or `none` for deviations from the mean alone.

    Returns:
        ``[B]`` z-scores, 0 by no members and, where they are divided, by equal ones; ``[B]`` bool, whether there are
        members.
    """
    groups, index = group.unique(return_inverse=True)
    zeros, inside = x.new_zeros(len(groups)), index[members]
    count = torch.bincount(inside, minlength=len(groups)).to(x.dtype)
    lowest = zeros.scatter_reduce(0, inside, x[members], "amin", include_self=False)
    shifted = x - lowest[index]
    mean = zeros.index_add(0, inside, shifted[members]) / count.clamp(min=1)
    centered = shifted - mean[index]
    squares = zeros.index_add(0, inside, centered[members].square())
    degrees = count if std == "population" else count - 1
    deviation = (squares / degrees.clamp(min=1)).sqrt()
    has_members = (count > 0)[index]
    if std == "none":
        return centered.where(has_members, 0.0), has_members
    return (centered / (deviation[index] + eps)).where((squares > 0)[index], 0.0), has_members

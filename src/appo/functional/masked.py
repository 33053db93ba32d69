"""Statistics over the positions a mask selects; what stands elsewhere, NaN included, has no effect."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the selected values; 0 where nothing is selected.

    Args:
        x: ``[..., T]`` values.
        mask: ``[..., T]`` bool, True on the values to average.

    Returns:
        ``[...]`` means.
    """
    return x.where(mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def masked_std(x: Tensor, mask: Tensor, group: Tensor | None = None) -> Tensor:
    """Population standard deviation of the selected values; exactly 0 where they are all equal.

    Args:
        x: ``[B, T]`` values.
        mask: ``[B, T]`` bool, True on the values that count.
        group: ``[B]`` int64, rows with the same value share one deviation; None keeps rows apart.

    Returns:
        ``[B]`` standard deviations.
    """
    return _deviations(x, mask, group)[1]


def masked_standardize(x: Tensor, mask: Tensor, group: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Z-scores of the selected values within each row or group of rows; 0 on the others, and where all are equal.

    ``z_t = (x_t - mean) / (std + eps)`` with the population standard deviation

    Args:
        x: ``[B, T]`` values.
        mask: ``[B, T]`` bool, True on the values to standardize.
        group: ``[B]`` int64, rows with the same value are standardized together; None keeps rows apart.
        eps: added to the standard deviation.

    Returns:
        ``[B, T]`` z-scores.
    """
    centered, std = _deviations(x, mask, group)
    return centered / (std.unsqueeze(-1) + eps)


def masked_standardize_by_row(x: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """The z-scores of `masked_standardize` with the rounding of the released code, for comparison with it.

    Each row's selected values are averaged on their own, and equal values may end up as far as 0.1 from 0: their mean
    differs from them in the last bit, and `eps` blows that up. Which branches the release picks depends on this.

    Args:
        x: ``[B, T]`` values.
        mask: ``[B, T]`` bool, True on the values to standardize.
        eps: added to the standard deviation.

    Returns:
        ``[B, T]`` z-scores; 0 elsewhere.
    """
    rows = [row for row in x[mask].split(mask.sum(-1).tolist()) if len(row)]
    z_scores = [(row - row.mean()) / (row.std(correction=0) + eps) for row in rows]
    return torch.zeros_like(x).masked_scatter(mask, torch.cat([x.new_empty(0), *z_scores]))


def _deviations(x: Tensor, mask: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """``[B, T]`` distances from the mean of the row's group, 0 where masked, and ``[B]`` their standard deviations."""
    index = torch.arange(len(x), device=x.device) if group is None else group.unique(return_inverse=True)[1]
    zeros = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    count = zeros.index_add(0, index, mask.sum(-1).to(x.dtype)).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return (zeros.index_add(0, index, values.sum(-1)) / count)[index].unsqueeze(-1)

    # Measured from the smallest value: a mean of equal floats need not equal them, and eps would blow the rest up.
    lowest = zeros.scatter_reduce(0, index, x.where(mask, float("inf")).amin(-1), "amin", include_self=False)[index]
    shifted = torch.where(mask, x - lowest.unsqueeze(-1), 0.0)
    centered = torch.where(mask, shifted - mean(shifted), 0.0)
    return centered, mean(centered.square()).squeeze(-1).sqrt()

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


def _deviations(x: Tensor, mask: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """``[B, T]`` distances from the mean of the row's group, 0 where masked, and ``[B]`` their standard deviations."""
    index = torch.arange(len(x), device=x.device) if group is None else group.unique(return_inverse=True)[1]
    zeros = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    count = zeros.index_add(0, index, mask.sum(-1).to(x.dtype)).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return (zeros.index_add(0, index, values.sum(-1)) / count)[index].unsqueeze(-1)

    # Counted from the smallest value: the mean of equal floats may differ from them in the last bit, and `eps` would
    # turn that into z-scores; the mean of zeros is 0.
    lowest = zeros.scatter_reduce(0, index, x.where(mask, float("inf")).amin(-1), "amin", include_self=False)[index]
    shifted = torch.where(mask, x - lowest.unsqueeze(-1), 0.0)
    centered = torch.where(mask, shifted - mean(shifted), 0.0)
    return centered, mean(centered.square()).squeeze(-1).sqrt()

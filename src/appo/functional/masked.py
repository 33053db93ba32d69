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


def masked_std(x: Tensor, mask: Tensor) -> Tensor:
    """Population standard deviation of the selected values; exactly 0 where they are all equal.

    Args:
        x: ``[..., T]`` values.
        mask: ``[..., T]`` bool, True on the values that count.

    Returns:
        ``[...]`` standard deviations.
    """
    return masked_mean(_centered(x, mask).square(), mask).sqrt()


def masked_standardize(x: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """Z-scores of the selected values within each row; 0 on the others, and where all are equal.

    ``z_t = (x_t - mean) / (std + eps)`` with the population standard deviation

    Args:
        x: ``[..., T]`` values.
        mask: ``[..., T]`` bool, True on the values to standardize.
        eps: added to the standard deviation.

    Returns:
        ``[..., T]`` z-scores.
    """
    centered = _centered(x, mask)
    std = masked_mean(centered.square(), mask).sqrt().unsqueeze(-1)
    return centered / (std + eps)


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


def _centered(x: Tensor, mask: Tensor) -> Tensor:
    # Measured from the smallest value: a mean of equal floats need not equal them, and eps would blow the rest up.
    lowest = x.where(mask, float("inf")).amin(-1, keepdim=True)
    shifted = x - lowest
    return torch.where(mask, shifted - masked_mean(shifted, mask).unsqueeze(-1), 0.0)

"""Sums over the future of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_LOG_RATIO = 20.0
"""Log-ratios are kept within this distance of 0 before `exp`: ``exp(20)`` is 5e8, far from overflow in float32."""

_BLOCK = 128


def discounted_suffix_sum(x: Tensor, discount: float) -> Tensor:
    """Adds to every position its discounted future.

    ``y_t = sum_{k >= t} discount**(k - t) * x_k``

    Sums double their reach within blocks, then each block takes over the first sum of the next: linear in the length,
    without division by a power of the discount.

    Args:
        x: ``[..., T]`` values; positions that must not count hold 0.
        discount: in [0, 1]; 0 returns `x`, 1 the plain suffix sum.

    Returns:
        ``[..., T]`` sums in the dtype of `x`.
    """
    length = x.shape[-1]
    blocks = F.pad(x, (0, -length % _BLOCK)).unflatten(-1, (-1, _BLOCK))  # a copy, never a view of `x`
    reach = 1
    while reach < _BLOCK:
        # Each sum has taken in `reach` values and takes in as many more: those of the sum that begins behind them. The
        # right-hand side is whole before anything is written, so none takes in a sum that has grown already.
        blocks[..., :-reach] += discount**reach * blocks[..., reach:]
        reach *= 2
    decay = discount ** torch.arange(_BLOCK, 0, -1, dtype=x.dtype, device=x.device)
    # What follows a block is the first sum of the next one, as far away as the block has positions left.
    sums, carry = [], torch.zeros_like(x[..., :1].sum(-1, keepdim=True))
    for block in reversed(blocks.unbind(-2)):
        sums.append(block + decay * carry)
        carry = sums[-1][..., :1]
    return torch.cat(sums[::-1], dim=-1)[..., :length] if sums else x.clone()


def future_likelihood_gain(
    log_ratio: Tensor, mask: Tensor, discount: float, clip: float, high_only: bool = False
) -> Tensor:
    """How much likelier the rest of a trajectory has become.

    ``S_t = sum_{k >= t} discount**(k - t) * log_ratio_k``, ``gain_t = clip(exp(S_t), 1 - clip, 1 + clip)``

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).

    Args:
        log_ratio: ``[..., T]`` log-probs under the current policy minus those under the behavior policy.
        mask: ``[..., T]`` bool, True on sampled tokens; the others add 0 but take a step of the discount.
        discount: in [0, 1].
        clip: half-width of the range around 1; 0 leaves the gain unclipped.
        high_only: never lets a gain that is clipped fall below 1.

    Returns:
        ``[..., T]`` gains, 1 where no change follows.
    """
    future = discounted_suffix_sum(log_ratio.where(mask, 0.0), discount)
    gain = future.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return gain.clamp(1.0 if high_only else 1.0 - clip, 1.0 + clip) if clip > 0.0 else gain

"""Policy-gradient surrogates, and the weights and filters of their terms."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from appo.functional.masked import masked_mean
from appo.functional.returns import MAX_LOG_RATIO, discounted_suffix_sum

_MAX_UNCLIPPED_WEIGHT = 10.0
_SAFE_RANGE = (0.8, 1.0)


class ClipEvents(NamedTuple):
    """Where clipping decides the surrogate, ``[B, T]`` bool each.

    Attributes:
        high: a positive advantage whose ratio is above the upper bound.
        low: a negative advantage whose ratio is below the lower bound.
        dual: a negative advantage whose ratio is above the dual clip.
    """

    high: Tensor
    low: Tensor
    dual: Tensor


def dual_clip_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """Negated clipped objective, bounded for negative advantages too.

    ``w = max(-A * r, -A * clip(r, 1 - clip_low, 1 + clip_high))`` with ``r = exp(log_ratio)``; where ``A < 0``,
    ``w = min(w, -A * dual_clip)``.

    See "Proximal Policy Optimization Algorithms" (https://arxiv.org/abs/1707.06347), Eq. (7), and "Mastering Complex
    Control in MOBA Games with Deep Reinforcement Learning" (https://arxiv.org/abs/1912.09729), Eq. (5).

    Args:
        log_ratio: ``[B, T]`` log-probs under the policy minus those under the old policy, with gradient.
        advantages: ``[B, T]``, without gradient.
        clip_low: how far the ratio may fall below 1 before it stops counting.
        clip_high: how far it may rise above 1.
        dual_clip: ratio from which on a negative advantage stops counting, above 1; None leaves it unbounded.

    Returns:
        ``[B, T]`` losses.
    """
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high))
    if dual_clip is None:
        return losses
    return torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)


def clipped_importance_surrogate(
    log_ratio: Tensor, log_probs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Policy gradient of every token, weighted by its clipped importance ratio: no token is left without a gradient.

    ``-stop_gradient(clip(r, 1 - clip_low, 1 + clip_high)) * A * log_probs``

    See "MiniMax-M1" (https://arxiv.org/abs/2506.13585), Eq. (4).

    Args:
        log_ratio: ``[B, T]`` log-probs under the policy minus those under the old policy.
        log_probs: ``[B, T]`` under the policy, with gradient.
        advantages: ``[B, T]``, without gradient.
        clip_low: how far the ratio may fall below 1; 1 leaves it unbounded.
        clip_high: how far it may rise above 1.

    Returns:
        ``[B, T]`` losses.
    """
    ratio = log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return -ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages * log_probs


def clip_balanced_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """`dual_clip_surrogate` whose upper clip bounds the gradient instead of cutting it off.

    Where ``A > 0`` and ``r > 1 + clip_high`` the loss is ``-A * (1 + clip_high) * r / stop_gradient(r)``: the value is
    the clipped one, the gradient that of a token with ratio ``1 + clip_high``.

    See "Agentic Entropy-Balanced Policy Optimization" (https://arxiv.org/abs/2510.14545), section 3.3.

    Args:
        log_ratio: as in `dual_clip_surrogate`.
        advantages: likewise.
        clip_low: likewise.
        clip_high: likewise.
        dual_clip: likewise.

    Returns:
        ``[B, T]`` losses.
    """
    losses = dual_clip_surrogate(log_ratio, advantages, clip_low, clip_high, dual_clip)
    bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    kept = -advantages * (1.0 + clip_high) * (bounded - bounded.detach()).exp()
    is_clipped = (advantages > 0) & (bounded.detach().exp() > 1.0 + clip_high)
    return torch.where(is_clipped, kept, losses)


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """One ratio for a whole row, the geometric mean of its tokens', through which each token keeps its own gradient.

    ``log s_t = stop_gradient(mean_k log_ratio_k) + log_ratio_t - stop_gradient(log_ratio_t)``

    See "Group Sequence Policy Optimization" (https://arxiv.org/abs/2507.18071), Eq. (7) and (14).

    Args:
        log_ratio: ``[B, T]`` log-probs under the policy minus those under the old policy, with gradient; 0 on tokens
            that are not trained.
        mask: ``[B, T]`` bool, True on trained tokens.

    Returns:
        ``[B, T]``; 0 where `mask` is False.
    """
    mean = masked_mean(log_ratio.detach(), mask).unsqueeze(-1)
    return (mean + log_ratio - log_ratio.detach()).where(mask, 0.0)


def clip_events(
    log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> ClipEvents:
    """Where `dual_clip_surrogate` clips.

    Args:
        log_ratio: ``[B, T]`` log-probs under the policy minus those under the old policy.
        advantages: ``[B, T]``.
        clip_low: how far the ratio may fall below 1.
        clip_high: how far it may rise above 1.
        dual_clip: ratio from which on a negative advantage stops counting; None bounds no ratio.
    """
    ratio = log_ratio.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    dual_bound = math.inf if dual_clip is None else dual_clip
    return ClipEvents(
        high=(advantages > 0) & (ratio > 1.0 + clip_high),
        low=(advantages < 0) & (ratio < 1.0 - clip_low),
        dual=(advantages < 0) & (ratio > dual_bound),
    )


def future_likelihood_weight(
    log_ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    half_life: float,
    clip: float,
    high_only: bool = True,
    max_ratio: float | None = None,
    safety_threshold: float | None = None,
) -> Tensor:
    """How much likelier the policy has become to go on as the trajectory did.

    ``F_t = sum_{k >= t} 2**(-(k - t) / half_life) * log_ratio_k``, ``f_t = clip(exp(F_t), 1 - clip, 1 + clip)``

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).

    Args:
        log_ratio: ``[B, T]`` log-probs under the policy minus those under the old policy.
        advantages: ``[B, T]``; only their signs are read.
        mask: ``[B, T]`` bool, True on trained tokens; the others add 0 but take a step of the discount.
        half_life: tokens after which a log-ratio counts half, positive.
        clip: half-width of the range around 1; 0 bounds the weight by 10 alone.
        high_only: never lowers the weight below 1.
        max_ratio: tokens whose ratio is above it do not take part; None lets all take part.
        safety_threshold: where the advantage is negative and the ratio above this, the weight is brought into
            [0.8, 1]; None never does.

    Returns:
        ``[B, T]`` weights, without gradient.
    """
    log_ratio = log_ratio.detach().where(mask, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    takes_part = log_ratio <= (math.inf if max_ratio is None else math.log(max_ratio))
    future = discounted_suffix_sum(log_ratio.where(takes_part, 0.0), 2.0 ** (-1.0 / half_life))
    weight = future.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    if clip > 0.0:
        weight = weight.clamp(1.0 if high_only else 1.0 - clip, 1.0 + clip)
    else:
        weight = weight.clamp(max=_MAX_UNCLIPPED_WEIGHT)
    if safety_threshold is None:
        return weight
    is_unsafe = (advantages < 0) & (log_ratio.exp() > safety_threshold)
    return torch.where(is_unsafe, weight.clamp(*_SAFE_RANGE), weight)


def rows_within_dual_clip(is_dual_clipped: Tensor, max_tokens: int = 1) -> Tensor:
    """Tells the rows that a filter of runaway sequences keeps.

    Args:
        is_dual_clipped: ``[B, T]`` bool, trained tokens with a negative advantage and a ratio above the dual clip.
        max_tokens: most such tokens of a row that is kept.

    Returns:
        ``[B]`` bool, True on rows that are kept.
    """
    return is_dual_clipped.sum(-1) <= max_tokens


def truncated_importance_weight(old_log_probs: Tensor, behavior_log_probs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Corrects for tokens that were sampled by a policy other than the one that begins the update.

    ``min(exp(old_log_probs - behavior_log_probs), cap)``

    See "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (https://fengyao.notion.site/off-policy-rl).

    Args:
        old_log_probs: ``[B, T]`` under the policy that begins the update.
        behavior_log_probs: ``[B, T]`` under the policy that sampled.
        mask: ``[B, T]`` bool, True on trained tokens.
        cap: largest weight, positive.

    Returns:
        ``[B, T]`` weights, without gradient; at most 1 on the other tokens.
    """
    log_weight = (old_log_probs - behavior_log_probs).detach().where(mask, 0.0)
    return log_weight.clamp(max=math.log(cap)).exp()


def rows_near_behavior(old_log_probs: Tensor, behavior_log_probs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Tells which trajectories the policy that begins the update might have sampled as well.

    ``1 / cap <= exp(mean_t(old_log_probs - behavior_log_probs)) <= cap``: the geometric mean of a row's importance
    weights, so that long rows are not left out for their length.

    See "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (https://fengyao.notion.site/off-policy-rl).

    Args:
        old_log_probs: ``[B, T]`` under the policy that begins the update.
        behavior_log_probs: ``[B, T]`` under the policy that sampled.
        mask: ``[B, T]`` bool, True on trained tokens.
        cap: largest factor between the two, at least 1.

    Returns:
        ``[B]`` bool.
    """
    return masked_mean(old_log_probs - behavior_log_probs, mask).abs() <= math.log(cap)

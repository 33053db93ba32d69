"""The Branching Score, and the likelihood gain alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.functional import future_likelihood_gain, masked_standardize, masked_std
from appo.scorers.base import SCORERS, Scorer, Scores, ScoringContext

Scope = Literal["trajectory", "prompt", "batch"]
"""Whose tokens share one mean and one standard deviation."""


def _groups(batch: TrajectoryBatch, scope: Scope) -> Tensor | None:
    """``[B]`` int64, rows that are standardized together; None keeps rows apart."""
    if scope == "trajectory":
        return None
    return batch.group if scope == "prompt" else torch.zeros_like(batch.group)


def _likelihood_gain(batch: TrajectoryBatch, discount: float, clip: float) -> Tensor:
    log_ratio = batch.old_log_probs - batch.behavior_log_probs
    return future_likelihood_gain(log_ratio, batch.response_mask, discount, clip)


def _check(discount: float, clip: float, scope: str) -> None:
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must lie in [0, 1], got {discount}")
    if not 0.0 <= clip < 1.0:
        raise ValueError(f"clip must lie in [0, 1), got {clip}")
    if scope not in get_args(Scope):
        raise ValueError(f"scope must be {', '.join(get_args(Scope))}, got {scope!r}")


@SCORERS.register
@dataclass(frozen=True)
class BranchingScore(Scorer):
    """Token entropy times the likelihood gain of what follows, both standardized.

    ``score_t = z(entropy)_t * z(gain)_t``; positions where both factors are positive are preferred.

    The gain compares the current policy with the one that sampled. Where the two agree it is constant but for rounding,
    which z-scores would blow up: there the score is ``z(entropy)`` alone.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    compares_policies = True

    discount: float = 1.0
    """Discount of later log-ratios, in [0, 1]."""
    clip: float = 0.2
    """Half-width of the range around 1 that the likelihood gain is clipped to; 0 leaves it unclipped."""
    scope: Scope = "trajectory"
    """Whose tokens share one mean and one standard deviation: `trajectory`, `prompt` or `batch`."""
    strict: bool = True
    """Prefers positions where both factors are positive; False goes by the product alone, in which two negative factors
    count as much."""
    entropy_fallback: bool = True
    """Scores by entropy alone where the gain is constant; False multiplies as the release does."""
    min_spread: float = 1e-4
    """Standard deviation up to which the gain is taken for constant: what rounding makes stays below."""

    def __post_init__(self) -> None:
        _check(self.discount, self.clip, self.scope)
        if not self.min_spread >= 0.0:
            raise ValueError(f"min_spread must not be negative, got {self.min_spread}")

    def __call__(self, batch: TrajectoryBatch, context: ScoringContext) -> Scores:
        mask, group = batch.response_mask, _groups(batch, self.scope)
        gain = _likelihood_gain(batch, self.discount, self.clip)
        z_entropy, z_gain = (masked_standardize(x, mask, group) for x in (batch.entropies, gain))
        if self.entropy_fallback:
            is_constant = masked_std(gain, mask, group) <= self.min_spread
            z_gain = torch.where(is_constant.unsqueeze(-1), 1.0, z_gain)
        values = z_entropy * z_gain
        return Scores(
            values=values.where(mask, float("-inf")),
            preferred=mask & (z_entropy > 0) & (z_gain > 0) & (values > 0) if self.strict else None,
            factors={"entropy": batch.entropies, "likelihood_gain": gain},
        )


@SCORERS.register
@dataclass(frozen=True)
class LikelihoodGain(Scorer):
    """Likelihood gain of what follows, standardized: the Branching Score without its entropy.

    ``score_t = z(gain)_t``. Without a change of the policy since sampling all scores are 0, and the first positions
    are taken.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    compares_policies = True

    discount: float = 1.0
    """Discount of later log-ratios, in [0, 1]."""
    clip: float = 0.2
    """Half-width of the range around 1 that the likelihood gain is clipped to; 0 leaves it unclipped."""
    scope: Scope = "trajectory"
    """Whose tokens share one mean and one standard deviation: `trajectory`, `prompt` or `batch`."""

    def __post_init__(self) -> None:
        _check(self.discount, self.clip, self.scope)

    def __call__(self, batch: TrajectoryBatch, context: ScoringContext) -> Scores:
        gain = _likelihood_gain(batch, self.discount, self.clip)
        values = masked_standardize(gain, batch.response_mask, _groups(batch, self.scope))
        return Scores(values.where(batch.response_mask, float("-inf")), factors={"likelihood_gain": gain})

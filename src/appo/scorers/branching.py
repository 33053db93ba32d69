"""The Branching Score."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from appo.batch import TrajectoryBatch
from appo.functional import future_likelihood_gain, masked_standardize, masked_standardize_by_row, masked_std
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class BranchingScore(Scorer):
    """Token entropy times the likelihood gain of what follows, both standardized within a trajectory.

    ``score_t = z(entropy)_t * z(gain)_t``; positions where both factors are positive are preferred.

    The gain compares the current policy with the one that sampled. Where the two agree it says nothing, and its
    z-scores would be numerical noise: such a trajectory is scored by ``z(entropy)`` alone.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    discount: float = 1.0
    """Discount of later log-ratios, in [0, 1]."""
    clip: float = 0.2
    """Half-width of the range around 1 that the likelihood gain is clipped to; 0 leaves it unclipped."""
    entropy_fallback: bool = True
    """Scores trajectories whose gain has no spread by entropy alone; False multiplies as the release does."""
    min_spread: float = 1e-4
    """Smallest standard deviation of a trajectory's gain that counts as spread; below it lies what rounding makes."""

    released_rounding: bool = False
    """Standardizes row by row with the release's rounding, to reproduce its choices; slower, and of no other use."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount must lie in [0, 1], got {self.discount}")
        if not 0.0 <= self.clip < 1.0:
            raise ValueError(f"clip must lie in [0, 1), got {self.clip}")
        if not self.min_spread >= 0.0:
            raise ValueError(f"min_spread must not be negative, got {self.min_spread}")

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> Scores:
        mask = batch.response_mask
        log_ratio = batch.old_log_probs - batch.behavior_log_probs
        gain = future_likelihood_gain(log_ratio, mask, self.discount, self.clip)
        standardize = masked_standardize_by_row if self.released_rounding else masked_standardize
        z_entropy, z_gain = standardize(batch.entropies, mask), standardize(gain, mask)
        if self.entropy_fallback:
            is_flat = masked_std(gain, mask) <= self.min_spread
            z_gain = torch.where(is_flat.unsqueeze(-1), 1.0, z_gain)
        values = z_entropy * z_gain
        return Scores(
            values=values.where(mask, float("-inf")),
            preferred=mask & (z_entropy > 0) & (z_gain > 0) & (values > 0),
            factors={"entropy": batch.entropies, "likelihood_gain": gain},
        )

"""Group advantages that grow with the uncertainty of the token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import Std, group_standardize, masked_standardize


@ADVANTAGES.register
@dataclass(frozen=True)
class EntropyAwareAdvantage(AdvantageEstimator):
    """Compares all trajectories of a prompt, and counts uncertain tokens more and sure ones less.

    ``A * (1 + weight * z(entropy)_t)`` with the z-score over all sampled tokens of the batch.

    See "Agentic Entropy-Balanced Policy Optimization" (https://arxiv.org/abs/2510.14545), section 3.3.
    """

    reads_log_probs = True

    std: Std = "sample"
    """What deviations from the group's mean are divided by: `population` or `sample` standard deviation, or `none`."""
    weight: float = 0.2
    """Weight of the entropy's z-score; 0 leaves group advantages as they are."""

    def __post_init__(self) -> None:
        if not self.weight >= 0.0:
            raise ValueError(f"weight must not be negative, got {self.weight}")

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        mask = batch.response_mask
        z_entropy = masked_standardize(batch.entropies, mask, group=torch.zeros_like(batch.group))
        by_row = group_standardize(batch.rewards, batch.group, std=self.std)
        return (by_row.unsqueeze(-1) * (1.0 + self.weight * z_entropy)).where(mask, 0.0)

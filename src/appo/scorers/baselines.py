"""Scorers to compare with: entropy alone, chance, and none."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from appo.core.batch import TrajectoryBatch
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class Entropy(Scorer):
    """Entropy of the distribution that the token was drawn from, in nats."""

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> Scores:
        values = batch.entropies.where(batch.response_mask, float("-inf"))
        return Scores(values, factors={"entropy": batch.entropies})


@SCORERS.register
@dataclass(frozen=True)
class RandomPosition(Scorer):
    """Uniform random numbers: every sampled token is as likely to be chosen as any other."""

    reads_log_probs = False

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> Scores:
        uniform = torch.rand(batch.token_ids.shape, generator=generator, device=generator.device)
        return Scores(uniform.to(batch.token_ids.device).where(batch.response_mask, float("-inf")))


@SCORERS.register
@dataclass(frozen=True)
class NoBranching(Scorer):
    """Refuses every position, so that all trajectories are initial ones."""

    reads_log_probs = False

    def __call__(self, batch: TrajectoryBatch, generator: torch.Generator) -> Scores:
        return Scores(torch.full_like(batch.entropies, float("-inf")))

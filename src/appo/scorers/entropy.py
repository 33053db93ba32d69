"""The entropy alone."""

from __future__ import annotations

from dataclasses import dataclass

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class Entropy(Scorer):
    """Entropy of the distribution that the token was drawn from, in nats."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        values = batch.entropies.where(batch.response_mask, float("-inf"))
        return Scores(values, factors={"entropy": batch.entropies})

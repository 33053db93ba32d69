"""Branches where the policy was surprised by its own token."""

from __future__ import annotations

from dataclasses import dataclass

from appo.core.batch import TrajectoryBatch
from appo.scorers import BatchContext, Scorer, Scores


@dataclass(frozen=True)
class ExcessSurprisal(Scorer):
    """Nats by which the sampled token was less likely than the policy's average choice at that place.

    ``score_t = -log_prob_t - entropy_t``
    """

    floor: float = 0.0
    """Positions below this are not preferred."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        surprisal = -batch.old_log_probs - batch.entropies
        values = surprisal.where(batch.response_mask, float("-inf"))
        return Scores(values, preferred=values > self.floor, factors={"surprisal": surprisal})

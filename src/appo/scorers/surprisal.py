"""Scorers that look at how likely the sampled token was: its surprisal, and the cut points of segments."""

from __future__ import annotations

import math
from dataclasses import dataclass

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class Surprisal(Scorer):
    """Nats by which the policy, as it is now, was surprised by the sampled token: ``-log_prob_t``.

    A control for `Entropy`, which is the mean of this over what might have been sampled.
    """

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        surprisal = -batch.old_log_probs
        return Scores(surprisal.where(batch.response_mask, float("-inf")), factors={"surprisal": surprisal})


@SCORERS.register
@dataclass(frozen=True)
class SegmentCut(Scorer):
    """Cuts a trajectory into segments of equally many uncertain tokens: every `interval`-th of them is a cut point.

    A token is uncertain if it was sampled with a probability below `probability`. Cut points are preferred, early ones
    first, ``1 / number``; the other uncertain tokens have score 0, and no branch leaves elsewhere.

    See "Segment Policy Optimization" (https://arxiv.org/abs/2505.23564).
    """

    reads_log_probs = False

    probability: float = 0.9
    """Probability below which a sampled token is uncertain, in (0, 1]."""
    interval: int = 5
    """Uncertain tokens of a segment."""

    def __post_init__(self) -> None:
        if not 0.0 < self.probability <= 1.0:
            raise ValueError(f"probability must lie in (0, 1], got {self.probability}")
        if self.interval < 1:
            raise ValueError(f"interval must be positive, got {self.interval}")

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        is_uncertain = batch.response_mask & (batch.behavior_log_probs < math.log(self.probability))
        number = is_uncertain.cumsum(-1)
        is_cut = is_uncertain & (number % self.interval == 0)
        order = (self.interval / number.clamp(min=1)).to(batch.entropies).where(is_cut, 0.0)
        return Scores(order.where(is_uncertain, float("-inf")), preferred=is_cut)

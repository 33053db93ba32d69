"""Advantages from point to point of a tree."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import Segment, segments, softmax_mean


@dataclass(frozen=True)
class ForkAdvantage(AdvantageEstimator):
    """Gives the tokens between two points of a tree what they have changed.

    A point is the beginning of a response, where all roots of a prompt leave, or where branches left a row. The value
    of an ending is its reward or, where branches left it in turn, that of its next point.
    """

    @abstractmethod
    def of_segment(self, segment: Segment) -> float:
        """The advantage of the tokens of a segment, from its value and those of the others that begin where it does."""

    def combine(self, values: Sequence[float]) -> float:
        """The value of a point from those of the segments that begin there."""
        return sum(values) / len(values)

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        _, index = batch.group.unique(return_inverse=True)
        lowest = batch.rewards.new_zeros(len(batch)).scatter_reduce(0, index, batch.rewards, "amin", include_self=False)
        # Counted from the lowest of its prompt: means of equal rewards are those rewards to the last bit.
        rewards = batch.rewards - lowest[index]
        advantages = torch.zeros(batch.token_ids.shape, dtype=batch.rewards.dtype)
        for segment in segments(rewards, batch.group, batch.parent, batch.branch_position, self.combine):
            # The next segment of the row overwrites what lies behind its own beginning.
            advantages[segment.row, segment.start :] = self.of_segment(segment)
        advantages = advantages.to(batch.rewards.device).gather(0, batch.owners)
        return advantages.where(batch.response_mask, 0.0)


@ADVANTAGES.register
@dataclass(frozen=True)
class SiblingAdvantage(ForkAdvantage):
    """Compares each ending with the others that leave the same point, its own left out.

    ``A = V - mean of V over the other endings of the point`` from that point to the next one, the parent's own ending
    being one of them; before the first point roots are compared with the other roots of their prompt. The advantages of
    the endings of a point add up to 0: they teach nothing of what lies before it, which the roots' comparison does.

    See "BPO" (https://arxiv.org/abs/2607.14171), which compares rewards; here an ending that is branched again counts
    by the value of its next point.
    """

    def of_segment(self, segment: Segment) -> float:
        return segment.value - sum(segment.others) / len(segment.others) if segment.others else 0.0


@ADVANTAGES.register
@dataclass(frozen=True)
class SegmentAdvantage(ForkAdvantage):
    """Gives the tokens between two points the difference of their values, estimated from what leaves there.

    ``A = V(next point) - V(point)``, behind the last point ``R - V(point)``, with the mean of the endings that leave a
    point, the row's own included, for its value.

    See "VinePPO" (https://arxiv.org/abs/2410.01679) and "Segment Policy Optimization" (https://arxiv.org/abs/2505.23564).
    """

    max_probability: float = 1.0
    """Tokens that the policy gave this probability or a higher one are not trained; 0.9 in Segment Policy Optimization.
    1 trains all, and needs no log-probs."""

    def __post_init__(self) -> None:
        if not 0.0 < self.max_probability <= 1.0:
            raise ValueError(f"max_probability must lie in (0, 1], got {self.max_probability}")

    @property
    def reads_log_probs(self) -> bool:  # type: ignore[override]  # of an instance, not of the class
        return self.max_probability < 1.0

    def of_segment(self, segment: Segment) -> float:
        return segment.value - self.combine([segment.value, *segment.others])

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        advantages = super().__call__(batch, context)
        if self.max_probability == 1.0:
            return advantages
        return advantages.where(batch.old_log_probs.exp() < self.max_probability, 0.0)


@ADVANTAGES.register
@dataclass(frozen=True)
class NodeValueAdvantage(ForkAdvantage):
    """`SegmentAdvantage` with values that lean towards the better endings of a point.

    The value of a point is the mean of those of its endings, weighted by ``softmax(V / temperature)``: what the policy
    would reach if it preferred the better ones. With a scorer that branches at turns, points are nodes of a turn tree.

    After "AT2PO" (https://arxiv.org/abs/2601.04767), which gives a node the softmax-weighted mean of its children; its
    code takes the weights from their entropies.
    """

    temperature: float = 1.0
    """Of the weights, in units of the reward; infinite weighs all endings alike."""

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def combine(self, values: Sequence[float]) -> float:
        return softmax_mean(values, self.temperature)

    def of_segment(self, segment: Segment) -> float:
        return segment.value - self.combine([segment.value, *segment.others])

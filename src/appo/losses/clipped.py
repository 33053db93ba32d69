"""The clipped surrogate, and its relatives that differ in what is clipped and how."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from appo.functional import Aggregation, clip_balanced_surrogate, clipped_importance_surrogate, sequence_log_ratio
from appo.losses.base import LOSSES
from appo.losses.surrogate import SurrogateLoss


@LOSSES.register
@dataclass(frozen=True)
class ClippedLoss(SurrogateLoss):
    """Clipped surrogate of the advantages as they are.

    See "Proximal Policy Optimization Algorithms" (https://arxiv.org/abs/1707.06347), Eq. (7).
    """


@LOSSES.register
@dataclass(frozen=True)
class SequenceClippedLoss(SurrogateLoss):
    """Clipped surrogate with one importance ratio for a whole row, the geometric mean of its tokens'.

    See "Group Sequence Policy Optimization" (https://arxiv.org/abs/2507.18071), Eq. (5), in its token form.
    """

    clip_low: float = 3e-4
    """How far the ratio of a row may fall below 1 before it stops counting; 1 leaves it unbounded."""
    clip_high: float = 4e-4
    """How far the ratio of a row may rise above 1 before it stops counting."""
    aggregation: Aggregation = "sequence-mean"
    """`token-mean`, or the mean over rows of their means (`sequence-mean`), of their sums (`sequence-sum`), or of their
    sums divided by `aggregation_length` (`constant`)."""

    def importance(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        return sequence_log_ratio(log_ratio, mask)


@LOSSES.register
@dataclass(frozen=True)
class ClippedImportanceLoss(SurrogateLoss):
    """Policy gradient weighted by clipped importance ratios: clipping bounds a token's weight and never silences it.

    See "MiniMax-M1" (https://arxiv.org/abs/2506.13585), Eq. (4).
    """

    clip_low: float = 1.0
    """How far the importance ratio may fall below 1; 1 leaves it unbounded."""
    clip_high: float = 4.0
    """How far the importance ratio may rise above 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dual_clip is not None:
            raise ValueError(f"dual_clip must be null with ClippedImportanceLoss, got {self.dual_clip}")

    def surrogate(self, log_ratio: Tensor, log_probs: Tensor, advantages: Tensor) -> Tensor:
        return clipped_importance_surrogate(log_ratio, log_probs, advantages, self.clip_low, self.clip_high)


@LOSSES.register
@dataclass(frozen=True)
class ClipBalancedLoss(SurrogateLoss):
    """Clipped surrogate that keeps a bounded gradient where the upper clip would cut it off.

    See "Agentic Entropy-Balanced Policy Optimization" (https://arxiv.org/abs/2510.14545), section 3.3.
    """

    def surrogate(self, log_ratio: Tensor, log_probs: Tensor, advantages: Tensor) -> Tensor:
        return clip_balanced_surrogate(log_ratio, advantages, self.clip_low, self.clip_high, self.dual_clip)

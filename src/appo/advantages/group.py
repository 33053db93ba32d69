"""One advantage a trajectory, relative to its group."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.distributed import comm
from appo.functional import Std, group_standardize

_EPS = 1e-6


class TrajectoryAdvantage(AdvantageEstimator):
    """Gives each token the advantage of its trajectory; branches are trajectories like any other."""

    @abstractmethod
    def by_row(self, batch: TrajectoryBatch) -> Tensor:
        """``[B]`` advantages of whole trajectories."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        return self.by_row(batch).unsqueeze(-1).where(batch.response_mask, 0.0)


@ADVANTAGES.register
@dataclass(frozen=True)
class GroupAdvantage(TrajectoryAdvantage):
    """Compares all trajectories of a prompt.

    See "DeepSeekMath" (https://arxiv.org/abs/2402.03300), section 4.1.2; without division, "Understanding R1-Zero-Like
    Training" (https://arxiv.org/abs/2503.20783), section 3.2.
    """

    std: Std = "population"
    """What deviations from the group's mean are divided by: `population` or `sample` standard deviation, or `none`."""

    def by_row(self, batch: TrajectoryBatch) -> Tensor:
        return group_standardize(batch.rewards, batch.group, std=self.std)


@ADVANTAGES.register
@dataclass(frozen=True)
class LeaveOneOut(TrajectoryAdvantage):
    """Reward minus the mean reward of the prompt's other trajectories; 0 for a prompt with one trajectory.

    See "Back to Basics" (https://arxiv.org/abs/2402.14740), section 3.2.
    """

    def by_row(self, batch: TrajectoryBatch) -> Tensor:
        _, index = batch.group.unique(return_inverse=True)
        size = torch.bincount(index)[index].to(batch.rewards.dtype)
        return group_standardize(batch.rewards, batch.group, std="none") * size / (size - 1).clamp(min=1)


@ADVANTAGES.register
@dataclass(frozen=True)
class GlobalBatchAdvantage(TrajectoryAdvantage):
    """Reward minus the prompt's mean, divided by the standard deviation of that over all trajectories of the batch.

    With several processes the batch is that of all of them.

    See "REINFORCE++" (https://arxiv.org/abs/2501.03262), the variant with a group baseline.
    """

    def by_row(self, batch: TrajectoryBatch) -> Tensor:
        centered = group_standardize(batch.rewards, batch.group, std="none")
        counts = batch.trained.any(-1).to(centered)
        # Deviations of each prompt add up to 0, so their mean over the batch is 0 too.
        squares, number = comm.all_reduce(torch.stack([centered.square() @ counts, counts.sum()])).tolist()
        return centered / (sqrt(squares / max(1.0, number)) + _EPS)

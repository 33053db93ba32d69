"""One advantage a trajectory, relative to its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.batch import TrajectoryBatch
from appo.functional import Std, group_standardize


@ADVANTAGES.register
@dataclass(frozen=True)
class GroupAdvantage(AdvantageEstimator):
    """Compares all trajectories of a prompt, branches like any other, and gives each token its trajectory's advantage.

    See "DeepSeekMath" (https://arxiv.org/abs/2402.03300), section 4.1.2.
    """

    trains_branches: ClassVar[bool] = True

    std: Std = "population"
    """What deviations from the group's mean are divided by: `population` or `sample` standard deviation, or `none`."""

    def __call__(self, batch: TrajectoryBatch) -> Tensor:
        advantages = group_standardize(batch.rewards, batch.group, std=self.std)
        return advantages.unsqueeze(-1).where(batch.response_mask, 0.0)

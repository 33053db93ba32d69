"""Advantages of roots, with credit from the branches that left them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.functional import Std, group_standardize, prefix_credit


@ADVANTAGES.register
@dataclass(frozen=True)
class ProceduralAdvantage(AdvantageEstimator):
    """Compares roots with roots and branches with branches, and adds branch credit to the shared tokens.

    ``A_t = z(reward of the root) + mean of z(reward of the branch) over the branches that share token t``, where `z` is
    taken within the roots, or within the branches, of a prompt. Branches carry rewards only and are not trained.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    std: Std = "population"
    """What deviations from the group's mean are divided by: `population` or `sample` standard deviation, or `none`."""

    def __call__(self, batch: TrajectoryBatch) -> Tensor:
        is_branch = batch.is_branch
        # Roots of a prompt form one group, its branches another.
        by_row = group_standardize(batch.rewards, 2 * batch.group + is_branch, std=self.std)
        credit = prefix_credit(by_row, batch.parent, batch.branch_position, batch.token_ids.shape[-1])
        trained = batch.response_mask & ~is_branch.unsqueeze(-1)
        return (by_row.unsqueeze(-1) + credit).where(trained, 0.0)

"""Advantages of roots, with credit from the branches that left them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.advantages.group import TrajectoryAdvantage
from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import Std, group_standardize, prefix_credit, standardize_by


@ADVANTAGES.register
@dataclass(frozen=True)
class ProceduralAdvantage(AdvantageEstimator):
    """Compares roots with roots and branches with branches, and adds branch credit to the shared tokens.

    ``A_t = z(reward) + mean of z(reward of the branch) over the branches that share token t``: the former of the
    trajectory that the token was sampled for, with `z` taken within the roots, or within the branches, of a prompt.

    So does the authors' release of "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), which
    trains roots alone; `DualGroupAdvantage` is Eq. (6) of the paper.
    """

    std: Std = "population"
    """What deviations from the group's mean are divided by: `population` or `sample` standard deviation, or `none`."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        # Roots of a prompt form one group, its branches another.
        by_row = group_standardize(batch.rewards, 2 * batch.group + batch.is_branch, std=self.std)
        credit = prefix_credit(by_row, batch.parent, batch.branch_position, batch.token_ids.shape[-1])
        return (by_row[batch.owners] + credit).where(batch.response_mask, 0.0)


@ADVANTAGES.register
@dataclass(frozen=True)
class DualGroupAdvantage(TrajectoryAdvantage):
    """Compares each trajectory with the roots of its prompt, and again with the branches, and averages the two.

    ``A = (z_roots(reward) + z_branches(reward)) / 2``, one number a trajectory. A group whose rewards are all equal has
    no scale to measure by, and counts 0; a prompt without branches is left with its roots.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), Eq. (6).
    """

    std: Std = "population"
    """What deviations from a group's mean are divided by: `population` or `sample` standard deviation, or `none`."""

    def by_row(self, batch: TrajectoryBatch) -> Tensor:
        of_roots, _ = standardize_by(batch.rewards, batch.group, ~batch.is_branch, std=self.std)
        of_branches, has_branches = standardize_by(batch.rewards, batch.group, batch.is_branch, std=self.std)
        return torch.where(has_branches, (of_roots + of_branches) / 2, of_roots)

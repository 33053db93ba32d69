"""Advantages that see roots and their branches as trees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.advantages.group import TrajectoryAdvantage
from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import Std, group_standardize, shared_prefix_mean, tree_roots


@ADVANTAGES.register
@dataclass(frozen=True)
class SharedPrefixAdvantage(AdvantageEstimator):
    """Compares all trajectories of a prompt and gives a shared token the mean advantage of those that share it.

    Branch rows are trained whole, so a shared token is trained once for each trajectory that has it.

    See "Agentic Reinforced Policy Optimization" (https://arxiv.org/abs/2507.19849), section 3.2, hard estimation.
    """

    std: Std = "sample"
    """What deviations from the group's mean are divided by: `population` or `sample` standard deviation, or `none`."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        by_row = group_standardize(batch.rewards, batch.group, std=self.std)
        shared = shared_prefix_mean(by_row, batch.parent, batch.branch_position, batch.token_ids.shape[-1])
        return shared.where(batch.response_mask, 0.0)


@ADVANTAGES.register
@dataclass(frozen=True)
class TreeAdvantage(TrajectoryAdvantage):
    """Compares a trajectory with all of its prompt, and again with those of its tree, and adds the two.

    A tree is a root with its branches, and theirs; one alone in its tree has nothing to be compared with there.

    See "Tree Search for LLM Agent Reinforcement Learning" (https://arxiv.org/abs/2509.21240), section 3.3.
    """

    std: Std = "sample"
    """What deviations from a mean are divided by: `population` or `sample` standard deviation, or `none`."""

    def by_row(self, batch: TrajectoryBatch) -> Tensor:
        between = group_standardize(batch.rewards, batch.group, std=self.std)
        return between + group_standardize(batch.rewards, tree_roots(batch.parent), std=self.std)

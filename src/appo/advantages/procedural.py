"""Advantages of initial trajectories, with credit from the branches that left them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.functional import Std, group_standardize, prefix_credit, reward_scale


@ADVANTAGES.register
@dataclass(frozen=True)
class ProceduralAdvantage(AdvantageEstimator):
    """Compares initial trajectories and branches of a prompt apart, and adds branch credit to the shared tokens.

    A token of an initial trajectory has the advantage of its trajectory plus the mean advantage of the branches that
    share the token. Branches carry rewards only and are not trained.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    std: Std = "population"
    """What deviations from the group's mean are divided by: `population` or `sample` standard deviation, or `none`."""
    reward_scale_discount: float | None = None
    """Discount of the release's reward scaling, in [0, 1]. It acts only on trajectories that are branched at their last
    token; none leaves rewards as they are."""

    def __post_init__(self) -> None:
        if self.reward_scale_discount is not None and not 0.0 <= self.reward_scale_discount <= 1.0:
            raise ValueError(f"reward_scale_discount must lie in [0, 1], got {self.reward_scale_discount}")

    def __call__(self, batch: TrajectoryBatch) -> Tensor:
        is_branch = batch.is_branch
        by_row = group_standardize(self._scaled_rewards(batch), 2 * batch.group + is_branch, std=self.std)
        credit = prefix_credit(by_row, batch.parent, batch.branch_position, batch.token_ids.shape[-1])
        trained = batch.response_mask & ~is_branch.unsqueeze(-1)
        return (by_row.unsqueeze(-1) + credit).where(trained, 0.0)

    def _scaled_rewards(self, batch: TrajectoryBatch) -> Tensor:
        if self.reward_scale_discount is None:
            return batch.rewards
        scale = reward_scale(
            batch.parent,
            batch.branch_position,
            batch.branch_score,
            batch.token_ids.shape[-1],
            self.reward_scale_discount,
        )
        return batch.rewards * scale.gather(-1, batch.lengths.unsqueeze(-1) - 1).squeeze(-1)

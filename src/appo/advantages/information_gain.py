"""Advantages of turns that bring the policy nearer to the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.turn_gains import turn_gains
from appo.functional import Std, group_standardize, turn_numbers, turn_starts


@ADVANTAGES.register
@dataclass(frozen=True)
class InformationGainAdvantage(AdvantageEstimator):
    """Rewards each turn with the information that it gains, and the last one with the outcome.

    ``r_k = p_k - p_(k-1)`` for all turns but the last (see `turn_gains`), ``r_K = R``; `z` are the rewards of turns,
    standardized over the prompt, and the advantage of turn `k` is ``sum over later j, itself among them, of
    discount**(j - k) z_j``. Prompts whose trajectories are all right or all wrong teach as well.

    See "Information Gain-based Policy Optimization" (https://arxiv.org/abs/2510.14967).
    """

    discount: float = 1.0
    """What each turn between takes off a later reward, in [0, 1]."""
    std: Std = "population"
    """What deviations are divided by: `population` or `sample` standard deviation, or `none`."""
    normalization: Literal["joint", "separate"] = "joint"
    """Whether gains and outcomes are compared with all rewards of their prompt or with their kind."""
    opening: str = "<answer>"
    """Text between the turns and the answer, as the policy opens its answers."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount must lie in [0, 1], got {self.discount}")
        if self.normalization not in ("joint", "separate"):
            raise ValueError(f"normalization must be joint or separate, got {self.normalization!r}")

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        turns = turn_numbers(batch.response_mask)
        row, position = turn_starts(batch.response_mask).nonzero(as_tuple=True)
        step = turns[row, position]
        is_last = step == turns.amax(-1)[row]
        gains = turn_gains(batch, context, self.opening)[row, position].to(batch.rewards.dtype)
        rewards = torch.where(is_last, batch.rewards[row], gains)
        kinds = 2 * batch.group[row] + (is_last if self.normalization == "separate" else 0)
        returns = rewards.new_zeros(len(batch), int(turns.max()) + 2)
        returns[row, step] = group_standardize(rewards, kinds, std=self.std)
        for number in range(returns.shape[1] - 2, -1, -1):
            returns[:, number] += self.discount * returns[:, number + 1]
        return returns.gather(-1, turns.clamp(min=0)).where(batch.response_mask, 0.0)

"""A penalty for responses that come close to the limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import REWARDS, Reward


@REWARDS.register
@dataclass(frozen=True)
class OverlongPenalty(Reward):
    """Falls from 0 to ``-penalty`` over the last tokens before the limit; meant as a part of `CompositeReward`.

    ``reward = -penalty * clip((length - (max_tokens - buffer_tokens)) / buffer_tokens, 0, 1)``

    Its part `overlong` is 1 for a response that is penalized.

    See "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" (https://arxiv.org/abs/2503.14476), Eq. (13).
    """

    max_tokens: int
    """Length that earns the whole penalty: ``${rollout.limits.max_response_tokens}``."""
    buffer_tokens: int = 512
    """Tokens before it over which the penalty grows."""
    penalty: float = 1.0
    """What the longest responses lose."""
    counts: Literal["response", "sampled"] = "response"
    """Whether tool output counts as a part of the length, as it does for the limit, or sampled tokens alone."""

    def __post_init__(self) -> None:
        if not 1 <= self.buffer_tokens <= self.max_tokens:
            raise ValueError(f"buffer_tokens must lie in [1, max_tokens = {self.max_tokens}], got {self.buffer_tokens}")
        if not 0.0 <= self.penalty < math.inf:
            raise ValueError(f"penalty must be finite and not negative, got {self.penalty}")
        if self.counts not in ("response", "sampled"):
            raise ValueError(f"counts must be response or sampled, got {self.counts!r}")

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        is_sampled = self.counts == "sampled"
        length = int(trajectory.response_mask.sum()) if is_sampled else trajectory.response_length
        excess = length - (self.max_tokens - self.buffer_tokens)
        share = min(max(excess / self.buffer_tokens, 0.0), 1.0)
        reason = f"{length} tokens are {excess} into the buffer of {self.buffer_tokens}" if share else ""
        return RewardResult(-self.penalty * share if share else 0.0, {"overlong": float(share > 0.0)}, reason)

"""A reward that an untrained policy can earn, so that a test can train for real within seconds."""

from __future__ import annotations

from dataclasses import dataclass

from appo.rewards import Reward
from appo.trajectory import Outcome, Trajectory


@dataclass(frozen=True)
class EvenTokens(Reward):
    """The share of sampled tokens whose id is even."""

    def __call__(self, trajectory: Trajectory) -> Outcome:
        share = float((trajectory.token_ids[trajectory.response_mask] % 2 == 0).float().mean())
        return Outcome(share, {"accuracy": share})


@dataclass(frozen=True)
class Constant(Reward):
    """The same for everyone."""

    def __call__(self, trajectory: Trajectory) -> Outcome:
        return Outcome(0.5, {"accuracy": 0.5})

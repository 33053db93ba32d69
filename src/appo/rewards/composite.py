"""A weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import REWARDS, Reward
from appo.rewards.function import as_reward


@REWARDS.register
@dataclass(frozen=True)
class CompositeReward(Reward):
    """Adds up rewards: ``reward = sum_k weight_k * reward_k``.

    Its parts are the reward of each by its name, unweighted, each one's own parts as ``name/part``, and `accuracy`.
    """

    parts: dict[str, Reward]
    """Rewards by the name that metrics and trajectory files give them; in Python, plain functions will do."""
    weights: dict[str, float] = field(default_factory=dict)
    """Factors by name; 1 for those that are left out."""
    accuracy_of: str | None = None
    """Name of the reward whose `accuracy` is that of the whole; `null`: the first that has one."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must name at least one reward, got none")
        object.__setattr__(self, "parts", {name: as_reward(reward) for name, reward in self.parts.items()})
        for name in self.parts:
            if not name or "/" in name or name == "accuracy":
                raise ValueError(f"parts must have names without '/' and other than 'accuracy', got {name!r}")
        for name, weight in self.weights.items():
            if name not in self.parts:
                raise ValueError(f"weights must belong to one of parts {', '.join(self.parts)}, got {name!r}")
            if not math.isfinite(weight):
                raise ValueError(f"weights must be finite, got {weight} for {name!r}")
        if self.accuracy_of is not None and self.accuracy_of not in self.parts:
            raise ValueError(f"accuracy_of must be one of parts {', '.join(self.parts)}, got {self.accuracy_of!r}")

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        results = {name: reward(trajectory) for name, reward in self.parts.items()}
        with_accuracy = (
            result
            for name, result in results.items()
            if "accuracy" in result.parts and self.accuracy_of in (None, name)
        )
        decisive = next(with_accuracy, None)
        parts = {} if decisive is None else {"accuracy": decisive.parts["accuracy"]}
        for name, result in results.items():
            parts[name] = result.reward
            parts |= {f"{name}/{part}": value for part, value in result.parts.items()}
        return RewardResult(
            sum(self.weights.get(name, 1.0) * result.reward for name, result in results.items()),
            parts,
            "; ".join(f"{name}: {result.reason}" for name, result in results.items() if result.reason),
            answer=None if decisive is None else decisive.answer,
        )

    @property
    def max_parallel(self) -> int | None:
        return min((reward.max_parallel for reward in self.parts.values() if reward.max_parallel), default=None)

    @property
    def num_ahead(self) -> int | None:
        return min((reward.num_ahead for reward in self.parts.values() if reward.num_ahead), default=None)

    def score_ahead(self, trajectories: Sequence[Trajectory]) -> None:
        for reward in self.parts.values():
            reward.score_ahead(trajectories)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset().union(*(reward.columns for reward in self.parts.values()))

    def start(self) -> None:
        with ExitStack() as started:
            for reward in self.parts.values():
                started.callback(reward.stop)
                reward.start()
            started.pop_all()

    def stop(self) -> None:
        with ExitStack() as stopped:
            for reward in self.parts.values():
                stopped.callback(reward.stop)

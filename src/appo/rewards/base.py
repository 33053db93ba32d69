"""What every reward offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from appo.registry import Registry
from appo.trajectory import Outcome, Trajectory


class Reward(ABC):
    """Judges a finished trajectory."""

    @abstractmethod
    def __call__(self, trajectory: Trajectory) -> Outcome:
        """Judges by `trajectory.segments` and `trajectory.prompt.answers`; must not depend on other trajectories."""


REWARDS: Registry[Reward] = Registry("reward", group="appo.rewards")

"""What every reward offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from appo.core.registry import Registry
from appo.core.trajectory import RewardResult, Trajectory


class RewardError(RuntimeError):
    """A trajectory could not be scored."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A trajectory could not be scored in the time there was."""


class Reward(ABC):
    """Scores a finished trajectory.

    Calls come from several threads at once, none of them the main thread.
    """

    @abstractmethod
    def __call__(self, trajectory: Trajectory) -> RewardResult:
        """Scores by `trajectory.segments` and `trajectory.prompt`; must not depend on other trajectories.

        Raises:
            RewardError: if there is no saying what the trajectory is worth.
        """

    @property
    def max_parallel(self) -> int | None:
        """Most trajectories that are scored at once; None leaves the number to the caller."""
        return None

    @property
    def num_ahead(self) -> int | None:
        """Trajectories that `score_ahead` takes at once; None if it does nothing."""
        return None

    def score_ahead(self, trajectories: Sequence[Trajectory]) -> None:
        """Scores trajectories together of which each is then asked about by itself.

        Args:
            trajectories: at most `num_ahead`.

        Raises:
            Exception: whatever goes wrong; each trajectory is then scored by itself.
        """
        return

    @property
    def columns(self) -> frozenset[str]:
        """Names of the fields in ``trajectory.prompt.columns`` that it cannot do without."""
        return frozenset()

    def start(self) -> None:
        """Prepares for calls: worker processes, connections; does nothing if the reward is started."""
        return

    def stop(self) -> None:
        """Frees what `start` took; does nothing if the reward is not started."""
        return


REWARDS: Registry[Reward] = Registry("reward", group="appo.rewards")
"""Rewards by class name, those of plug-ins included."""

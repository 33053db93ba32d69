"""A user's own function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from appo.core.functions import as_function
from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import REWARDS, Reward
from appo.workers.processes import ProcessPool


@REWARDS.register
@dataclass(eq=False)
class FunctionReward(Reward):
    """Calls a function: ``function(trajectory, **options)``.

    It returns a number, or a `RewardResult` to report parts too. Its signature is checked when the reward is made.
    """

    function: str | Callable[..., Any]
    """Its import path ``package.module:name``; in Python, the function itself will do."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed by name to every call."""
    num_processes: int = 0
    """Processes that run the function, one trajectory each, killed at `timeout_s` whatever it does; 0 runs it in
    threads, which costs less and cannot interrupt one long operation, such as a regular expression that backtracks."""
    timeout_s: float = 30.0
    """Seconds that a call may take in a process; in a thread, ``rollout.rewards.timeout_s`` is the limit."""
    memory_mb: int = 8192
    """Address space of each process in MiB."""

    _function: Callable[..., Any] = field(init=False, repr=False)
    _pool: ProcessPool | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.num_processes < 0:
            raise ValueError(f"num_processes must not be negative, got {self.num_processes}")
        if not self.timeout_s > 0.0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}")
        if self.memory_mb < 1024:
            raise ValueError(f"memory_mb must be at least 1024, which a process needs for itself, got {self.memory_mb}")
        self._function = as_function(self.function)
        try:
            inspect.signature(self._function).bind(None, **self.options)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"function must take a trajectory and the options {self.options}, got {self.function!r} ({error})"
            ) from error
        if self.num_processes:
            if not isinstance(self.function, str):
                raise ValueError(f"function must be an import path to run in processes, got {self.function!r}")
            self._pool = ProcessPool(self.function, self.num_processes, self.memory_mb)

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        if self._pool is None:
            value = self._function(trajectory, **self.options)
        else:
            value = self._pool.call(self.timeout_s, trajectory, **self.options)
        if isinstance(value, RewardResult):
            return value
        if not isinstance(value, SupportsFloat):
            raise TypeError(f"{self.function} must return a number or a RewardResult, got {value!r}")
        return RewardResult(float(value))

    @property
    def max_parallel(self) -> int | None:
        return self.num_processes or None

    def start(self) -> None:
        if self._pool is not None:
            self._pool.start()

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()


def as_reward(reward: Reward | Callable[[Trajectory], float | RewardResult]) -> Reward:
    """The reward; a plain function of a trajectory becomes one.

    Raises:
        ValueError: if it is neither.
    """
    return reward if isinstance(reward, Reward) else FunctionReward(reward)

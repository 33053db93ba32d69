"""A user's own function as a reward."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import REWARDS, Reward
from appo.workers.processes import ProcessPool


@REWARDS.register
@dataclass(eq=False)
class FunctionReward(Reward):
    """Calls a function that is named by its import path: ``function(trajectory, **options)``.

    It returns a number, or a `RewardResult` to report parts too. It is imported and its signature checked when the
    reward is made.
    """

    function: str
    """``package.module:name``."""
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
        self._function = _imported(self.function, self.options)
        if self.num_processes:
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


def _imported(path: str, options: dict[str, Any]) -> Callable[..., Any]:
    """The function at an import path.

    Raises:
        ValueError: if there is none, or it cannot be called with a trajectory and the options.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name.isidentifier()):
        raise ValueError(f"function must have the form package.module:name, got {path!r}")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"function must be importable, got {path!r} ({type(error).__name__}: {error})") from error
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise ValueError(f"function must be callable and not a coroutine function, got {path!r}: {function!r}")
    try:
        inspect.signature(function).bind(None, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"function must take a trajectory and the options {options}, got {path!r} ({error})"
        ) from error
    checked: Callable[..., Any] = function
    return checked

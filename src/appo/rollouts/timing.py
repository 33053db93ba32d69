"""Seconds by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import ParamSpec, TypeVar

from lightning.pytorch.profilers import PassThroughProfiler, Profiler

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class PhaseTimer:
    """Adds up the wall-clock seconds of named phases until `pop` reads and clears them.

    Where one phase lies inside another, the time counts to the inner one alone: the seconds of all phases add up. It
    belongs to one thread.

    Args:
        profiler: records every phase as ``[rollout]<phase>``; None records nothing.
    """

    def __init__(self, profiler: Profiler | None = None) -> None:
        self._profiler = profiler or PassThroughProfiler()
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        """Phases that have begun and not ended; the last one is counted."""
        self._since = 0.0
        self._undivided = 0
        """Phases that have begun and take all the time inside them."""

    @contextmanager
    def __call__(self, phase: str, undivided: bool = False) -> Iterator[None]:
        """Counts the time inside the ``with`` block to `phase`.

        Args:
            phase: its name.
            undivided: counts the phases inside the block to this one too.
        """
        self.start(phase)
        self._undivided += undivided
        try:
            yield
        finally:
            self._undivided -= undivided
            self.stop()

    def timed(self, phase: str, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The function, with the time of every call counted to `phase`."""

        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            with self(phase):
                return function(*args, **kwargs)

        return call

    def start(self, phase: str) -> None:
        """Counts the time from now on to `phase`, until `stop` or another `start`."""
        self._pause()
        self._running.append(self._running[-1] if self._undivided else phase)
        self._resume()

    def stop(self) -> None:
        """Ends the phase that was started last; the one around it goes on."""
        self._pause()
        self._running.pop()
        self._resume()

    def move(self, seconds: float, phase: str, to: str) -> None:
        """Counts seconds of `phase` to another one."""
        if not self._undivided:
            self._add(phase, -seconds)
            self._add(to, seconds)

    def pop(self) -> dict[str, float]:
        """Seconds by phase since the last call; of a phase that goes on, up to now."""
        self._pause()
        seconds, self._seconds = self._seconds, {}
        self._resume()
        return seconds

    def _pause(self) -> None:
        if self._running:
            self._add(self._running[-1], perf_counter() - self._since)
            # A profiler that records one action at a time would not come back to the outer one by itself.
            self._profiler.stop(f"[rollout]{self._running[-1]}")

    def _resume(self) -> None:
        if self._running:
            self._profiler.start(f"[rollout]{self._running[-1]}")
            self._since = perf_counter()

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

"""Seconds by phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from lightning.pytorch.profilers import PassThroughProfiler, Profiler


class Stopwatch:
    """Adds up the wall-clock seconds of named phases until `take` reads and clears them.

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

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time inside the ``with`` block to `phase`."""
        self.start(phase)
        try:
            yield
        finally:
            self.stop()

    def start(self, phase: str) -> None:
        """Counts the time from now on to `phase`, until `stop` or another `start`."""
        self._pause()
        self._running.append(phase)
        self._go_on()

    def stop(self) -> None:
        """Ends the phase that was started last; the one around it goes on."""
        self._pause()
        self._running.pop()
        self._go_on()

    def move(self, seconds: float, phase: str, to: str) -> None:
        """Counts seconds of `phase` to another one."""
        self._add(phase, -seconds)
        self._add(to, seconds)

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call; of a phase that goes on, up to now."""
        self._pause()
        seconds, self._seconds = self._seconds, {}
        self._go_on()
        return seconds

    def _pause(self) -> None:
        if self._running:
            self._add(self._running[-1], perf_counter() - self._since)
            # A profiler that records one action at a time would not come back to the outer one by itself.
            self._profiler.stop(f"[rollout]{self._running[-1]}")

    def _go_on(self) -> None:
        if self._running:
            self._profiler.start(f"[rollout]{self._running[-1]}")
            self._since = perf_counter()

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

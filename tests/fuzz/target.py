"""What is fuzzed, and within which limits."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from hypothesis.strategies import SearchStrategy

Input = Sequence[str]
"""Texts; bytes stand in them as the first 256 characters, so that a corpus is a readable file."""
Check = Callable[[Input], None]
"""Raises where something is wrong."""


class FindingError(AssertionError):
    """An input does what none may."""


@dataclass(frozen=True)
class Target:
    """Something that reads what a stranger wrote.

    Attributes:
        name: on the command line.
        inputs: that are tried.
        opened: gives the check, with what it needs in place.
        seconds: that an input may take, of the processor or, with `is_waiting`, of the clock.
        memory_mb: by which an input may raise the memory of the process.
        is_waiting: whether the work is done by other processes.
    """

    name: str
    inputs: SearchStrategy[Input]
    opened: Callable[[], AbstractContextManager[Check]]
    seconds: float
    memory_mb: int = 64
    is_waiting: bool = False

    def run(self, check: Check, value: Input) -> float:
        """Checks one input within the limits.

        Returns:
            The seconds that it took.

        Raises:
            FindingError: if it took too much time or memory; the check's own errors pass through.
        """
        memory = _peak_mb()
        seconds = self._seconds(check, value)
        more = _peak_mb() - memory
        if seconds > self.seconds:
            # A machine that does other things besides, or what is loaded once, is no finding.
            seconds = min(seconds, self._seconds(check, value), self._seconds(check, value))
        if seconds > self.seconds:
            raise FindingError(f"took {seconds:.2f} s, more than {self.seconds:g}")
        if more > self.memory_mb:
            raise FindingError(f"took {more} MiB, more than {self.memory_mb}")
        return seconds

    def _seconds(self, check: Check, value: Input) -> float:
        for function in _caches():
            function.cache_clear()
        clock = time.monotonic if self.is_waiting else time.process_time
        began = clock()
        check(value)
        return clock() - began


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


_FOUND: dict[str, list[Callable[..., object]]] = {}


def _caches() -> list:
    """What remembers results: an input that is tried again must not be answered from memory."""
    key = str(len(sys.modules))
    if key not in _FOUND:
        modules = [module for name, module in sys.modules.items() if name.startswith("appo.")]
        functions = (value for module in modules for value in vars(module).values())
        _FOUND[key] = [function for function in functions if hasattr(function, "cache_clear")]
    return _FOUND[key]

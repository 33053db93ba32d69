"""Interpreter processes that keep their variables for the next call of a trajectory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from appo.core.trajectory import ToolCall
from appo.tools.python.client import Session

Codes = tuple[str, ...]
"""What a process has run, in order: all that its variables depend on."""


class Sessions:
    """Processes that wait for more code; the one that has waited longest goes when there are too many.

    Known by what they have run and not by whose they are: trajectories that share their calls may take one another's.

    Args:
        limit: most processes that wait at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: list[tuple[Codes, Session]] = []
        self._lock = threading.Lock()

    def pop(self, codes: Codes) -> Session | None:
        """A process that has run just these codes, if one waits; it is the caller's then."""
        with self._lock:
            for index, (known, session) in enumerate(self._waiting):
                if known == codes:
                    del self._waiting[index]
                    return session
        return None

    def put(self, codes: Codes, session: Session) -> None:
        """Leaves a process to whoever asks for these codes."""
        with self._lock:
            self._waiting.append((codes, session))
            surplus = self._waiting.pop(0)[1] if len(self._waiting) > self._limit else None
        if surplus is not None:
            surplus.close()

    def clear(self) -> None:
        """Ends all processes that wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, session in waiting:
            session.close()


def codes_of(earlier: Sequence[ToolCall]) -> Codes:
    """What a process must have run to stand where these calls left it.

    A call that ran out of time took its process along, and calls that were never run left no trace.
    """
    codes: list[str] = []
    for call in earlier:
        if call.failure == "timeout":
            codes.clear()
        elif call.failure in (None, "error"):
            codes.append(call.argument)
    return tuple(codes)

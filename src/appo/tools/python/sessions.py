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

    Each belongs to one trajectory: what code leaves behind need not follow from the code alone.

    Args:
        limit: most processes that wait at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: list[tuple[object, Codes, Session]] = []
        self._lock = threading.Lock()

    def pop(self, trajectory: object, codes: Codes) -> Session | None:
        """The trajectory's process that has run just these codes, if one waits; it is the caller's then."""
        with self._lock:
            for index, (owner, known, session) in enumerate(self._waiting):
                if owner is trajectory and known == codes:
                    del self._waiting[index]
                    return session
        return None

    def put(self, trajectory: object, codes: Codes, session: Session) -> None:
        """Leaves a process to the trajectory's next call."""
        with self._lock:
            self._waiting.append((trajectory, codes, session))
            surplus = self._waiting.pop(0)[2] if len(self._waiting) > self._limit else None
        if surplus is not None:
            surplus.close()

    def clear(self) -> None:
        """Ends all processes that wait."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, _, session in waiting:
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

"""A rate of calls that threads share."""

from __future__ import annotations

import math
import threading
import time


class Pace:
    """Gives the calls of all threads their moments, evenly spaced.

    Args:
        per_s: calls a second at most; None sets no limit.
    """

    def __init__(self, per_s: float | None) -> None:
        self._interval_s = 1.0 / per_s if per_s is not None else 0.0
        self._next_at = -math.inf
        self._lock = threading.Lock()

    def pop_moment(self, until: float) -> float | None:
        """Takes the next free moment, on the clock of `time.monotonic`; None if it lies past `until`: it stays free."""
        with self._lock:
            moment = max(self._next_at, time.monotonic())
            if moment > until:
                return None
            self._next_at = moment + self._interval_s
            return moment

    def hold(self, seconds: float) -> None:
        """Lets no further call begin for so long."""
        with self._lock:
            self._next_at = max(self._next_at, time.monotonic() + seconds)

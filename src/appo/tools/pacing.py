"""When calls to a service may be made: a rate that threads share, and pauses that grow."""

from __future__ import annotations

import math
import random
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


class Pace:
    """Gives the calls of all threads their moments, evenly spaced.

    Args:
        per_s: calls a second at most; None sets no limit.
    """

    def __init__(self, per_s: float | None) -> None:
        self._interval_s = 1.0 / per_s if per_s is not None else 0.0
        self._next_at = -math.inf
        self._lock = threading.Lock()

    def take(self, until: float) -> float | None:
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


class BackOff:
    """Pauses before attempts, each twice the one before it, shortened by up to a half at random.

    The chance parts callers that failed together. It has a source of its own: a run's own draws stay as they are.

    Args:
        first_s: the first pause at its longest.
        longest_s: that no pause exceeds.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self.first_s = first_s
        self.longest_s = longest_s
        self._random = random.Random()

    def pause_s(self, num_failures: int) -> float:
        """Seconds to wait after so many failures in a row, at least 1."""
        longest = min(self.first_s * 2.0 ** min(num_failures - 1, 60), self.longest_s)
        return longest * self._random.uniform(0.5, 1.0)


def retry_after_s(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks to wait, given as a number or a date; 0 if it says nothing."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())

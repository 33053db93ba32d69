"""Attempts that are made again where what failed need not last, after pauses that grow."""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_base

LONGEST_RETRY_AFTER_S = 60.0
"""What a service may ask for, however long it wants to be left alone: asked again, it can say so again."""

_PASSING_STATUSES = frozenset({408, 409, 425, 429})


class PassingError(Exception):
    """An attempt failed in a way that need not last.

    Args:
        message: what happened.
        retry_after_s: seconds that the other side wants to be left alone.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoppedError(Exception):
    """The caller was stopped while it waited for another attempt."""


class BackOff(wait_base):
    """Pauses before attempts, each twice the one before it, shortened by up to a half at random.

    The chance parts callers that failed together. It has a source of its own: a run's own draws stay as they are. A
    pause is at least as long as a `PassingError` asks for.

    Args:
        first_s: the first pause at its longest.
        longest_s: that no pause exceeds but one that was asked for.
    """

    def __init__(self, first_s: float, longest_s: float = math.inf) -> None:
        self.first_s = first_s
        self.longest_s = longest_s
        self._random = random.Random()

    def __call__(self, retry_state: RetryCallState) -> float:
        longest = min(self.first_s * 2.0 ** min(retry_state.attempt_number - 1, 60), self.longest_s)
        error = retry_state.outcome.exception() if retry_state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, PassingError) else 0.0
        return max(longest * self._random.uniform(0.5, 1.0), asked)


def retrying(
    back_off: BackOff,
    max_attempts: int,
    timeout_s: float,
    stopped: threading.Event,
    may_pass: Callable[[BaseException], bool] = lambda error: isinstance(error, PassingError),
) -> Retrying:
    """Makes attempts in the caller's thread: ``retrying(...)(function, *arguments)``.

    In the end it raises what the last attempt raised, and ``statistics["attempt_number"]`` is how many there were.
    Who is stopped in a pause gets a `StoppedError`.

    Args:
        back_off: the pauses.
        max_attempts: at most.
        timeout_s: after which no further attempt begins; does not cut one short.
        stopped: ends a pause, and with it the attempts.
        may_pass: whether another attempt may succeed where one raised this.
    """

    def pause(seconds: float) -> None:
        if stopped.wait(seconds):
            raise StoppedError("stopped between two attempts")

    return Retrying(
        sleep=pause,
        stop=stop_after_attempt(max_attempts) | stop_before_delay(timeout_s),
        wait=back_off,
        retry=retry_if_exception(may_pass),
        reraise=True,
    )


def is_passing(status_code: int) -> bool:
    """Whether an HTTP status says of a failure that it need not last."""
    return status_code >= 500 or status_code in _PASSING_STATUSES


def retry_after_s(value: str | None) -> float:
    """Seconds that a ``Retry-After`` header asks to wait, given as a number or a date.

    Args:
        value: of the header.

    Returns:
        At most `LONGEST_RETRY_AFTER_S`; 0 if the header says nothing.
    """
    if value is None:
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(value)
        wait_s = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError, TypeError, LookupError):
        return 0.0
    return min(max(wait_s, 0.0), LONGEST_RETRY_AFTER_S)

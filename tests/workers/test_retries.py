from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from tenacity import RetryCallState

from appo.workers.retries import BackOff, PassingError, StoppedError, is_passing, retry_after_s, retrying


def pauses(back_off: BackOff, attempt: int, error: Exception) -> set[float]:
    state = RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = attempt
    state.set_exception((type(error), error, None))
    return {back_off(state) for _ in range(50)}


def test_pauses_double_up_to_the_longest_and_vary_by_half():
    back_off = BackOff(1.0, 6.0)
    for attempt, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 6.0), (2000, 6.0)):
        found = pauses(back_off, attempt, ValueError())
        assert all(0.5 * longest <= pause <= longest for pause in found)
        assert len(found) > 1


def test_a_pause_is_at_least_as_long_as_asked_for():
    assert pauses(BackOff(1.0, 6.0), 1, PassingError("busy", retry_after_s=60.0)) == {60.0}
    assert min(pauses(BackOff(1.0, 6.0), 3, PassingError("busy", retry_after_s=0.1))) >= 2.0


def failing(errors: list[Exception], seen: list[int]):
    def function(number: int) -> int:
        seen.append(number)
        if errors:
            raise errors.pop(0)
        return number

    return function


def attempts(max_attempts: int = 3, first_s: float = 0.0, timeout_s: float = 60.0, **options):
    return retrying(BackOff(first_s), max_attempts, timeout_s, **{"stopped": threading.Event(), **options})


def test_what_passes_is_tried_again_until_it_succeeds():
    seen: list[int] = []
    assert attempts()(failing([PassingError("a"), PassingError("b")], seen), 7) == 7
    assert seen == [7, 7, 7]


def test_the_last_failure_is_raised_and_the_attempts_are_counted():
    trying = attempts()
    with pytest.raises(PassingError, match="c"):
        trying(failing([PassingError("a"), PassingError("b"), PassingError("c")], []), 7)
    assert trying.statistics["attempt_number"] == 3


def test_what_lasts_is_raised_at_once():
    seen: list[int] = []
    with pytest.raises(ValueError, match="no"):
        attempts()(failing([ValueError("no")], seen), 7)
    assert seen == [7]


def test_the_caller_may_say_what_passes():
    seen: list[int] = []
    may_pass = lambda error: isinstance(error, OSError)  # noqa: E731
    assert attempts(may_pass=may_pass)(failing([OSError()], seen), 7) == 7
    assert seen == [7, 7]


def test_no_attempt_begins_beyond_the_limit():
    begin = time.monotonic()
    with pytest.raises(PassingError):
        attempts(first_s=60.0, timeout_s=20.0)(failing([PassingError("a")], []), 7)
    assert time.monotonic() - begin < 10.0


def test_who_is_stopped_neither_waits_nor_tries_again():
    seen: list[int] = []
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(StoppedError):
        attempts(first_s=20.0, stopped=stopped)(failing([PassingError("a")], seen), 7)
    assert seen == [7]


@pytest.mark.parametrize(("status", "passes"), [(200, False), (404, False), (429, True), (500, True), (503, True)])
def test_some_statuses_need_not_last(status, passes):
    assert is_passing(status) == passes


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, 0.0), ("7", 7.0), ("1.5", 1.5), (" 0 ", 0.0), ("soon", 0.0), ("-3", 0.0), ("inf", 0.0)],
)
def test_a_server_asks_to_wait_for_seconds(value, seconds):
    assert retry_after_s(value) == seconds


def test_a_server_asks_to_wait_until_a_date():
    now = datetime.now(UTC)
    assert retry_after_s(format_datetime(now + timedelta(seconds=45), usegmt=True)) == pytest.approx(45.0, abs=2.0)
    assert retry_after_s(format_datetime(now - timedelta(seconds=45), usegmt=True)) == 0.0

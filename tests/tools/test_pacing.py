import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from appo.tools.pacing import BackOff, Pace, retry_after_s


def test_moments_are_spaced_evenly():
    pace = Pace(4.0)
    first = pace.take(float("inf"))
    assert [pace.take(float("inf")) - first for _ in range(3)] == pytest.approx([0.25, 0.5, 0.75])


def test_a_moment_that_would_come_too_late_is_left_to_others():
    pace = Pace(0.1)
    first = pace.take(float("inf"))
    assert pace.take(first + 9.0) is None
    assert pace.take(first + 11.0) == pytest.approx(first + 10.0)


def test_no_rate_sets_no_limit():
    pace = Pace(None)
    now = time.monotonic()
    assert all(pace.take(now + 60.0) < now + 60.0 for _ in range(100))


def test_a_hold_moves_the_next_moment_and_never_back():
    pace = Pace(None)
    pace.hold(50.0)
    pace.hold(10.0)
    now = time.monotonic()
    assert pace.take(float("inf")) == pytest.approx(now + 50.0, abs=1.0)


def test_pauses_double_up_to_the_longest_and_vary_by_half():
    back_off = BackOff(1.0, 6.0)
    for num_failures, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 6.0), (2000, 6.0)):
        pauses = {back_off.pause_s(num_failures) for _ in range(50)}
        assert all(0.5 * longest <= pause <= longest for pause in pauses)
        assert len(pauses) > 1


@pytest.mark.parametrize(("value", "seconds"), [(None, 0.0), ("7", 7.0), (" 0 ", 0.0), ("soon", 0.0), ("-3", 0.0)])
def test_a_server_asks_to_wait_for_seconds(value, seconds):
    assert retry_after_s(value) == seconds


def test_a_server_asks_to_wait_until_a_date():
    now = datetime.now(UTC)
    assert retry_after_s(format_datetime(now + timedelta(seconds=90), usegmt=True)) == pytest.approx(90.0, abs=2.0)
    assert retry_after_s(format_datetime(now - timedelta(seconds=90), usegmt=True)) == 0.0

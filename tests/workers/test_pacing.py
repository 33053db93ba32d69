import time

import pytest

from appo.workers.pacing import Pace


def test_moments_are_spaced_evenly():
    pace = Pace(4.0)
    first = pace.pop_moment(float("inf"))
    assert [pace.pop_moment(float("inf")) - first for _ in range(3)] == pytest.approx([0.25, 0.5, 0.75])


def test_a_moment_that_would_come_too_late_is_left_to_others():
    pace = Pace(0.1)
    first = pace.pop_moment(float("inf"))
    assert pace.pop_moment(first + 9.0) is None
    assert pace.pop_moment(first + 11.0) == pytest.approx(first + 10.0)


def test_no_rate_sets_no_limit():
    pace = Pace(None)
    now = time.monotonic()
    assert all(pace.pop_moment(now + 60.0) < now + 60.0 for _ in range(100))


def test_a_hold_moves_the_next_moment_and_never_back():
    pace = Pace(None)
    pace.hold(50.0)
    pace.hold(10.0)
    now = time.monotonic()
    assert pace.pop_moment(float("inf")) == pytest.approx(now + 50.0, abs=1.0)

"""Seconds of phases that lie inside one another, on a clock that the test advances."""

from __future__ import annotations

import pytest
from lightning.pytorch.profilers import SimpleProfiler

from appo.rollouts import Stopwatch, timing


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


def test_an_inner_phase_does_not_count_to_the_outer_one(clock):
    watch = Stopwatch()
    with watch("evaluation"):
        clock.now += 1
        with watch("weights"):
            clock.now += 2
        clock.now += 4
    clock.now += 8
    with watch("evaluation"):
        clock.now += 16
    assert watch.take() == {"evaluation": 21.0, "weights": 2.0}
    assert watch.take() == {}


def test_a_phase_that_goes_on_counts_up_to_now(clock):
    watch = Stopwatch()
    watch.start("update")
    clock.now += 1
    assert watch.take() == {"update": 1.0}
    clock.now += 2
    watch.stop()
    assert watch.take() == {"update": 2.0}


def test_seconds_can_be_moved_to_another_phase(clock):
    watch = Stopwatch()
    with watch("branching"):
        clock.now += 3
    watch.move(1.0, "branching", "tools")
    assert watch.take() == {"branching": 2.0, "tools": 1.0}


def test_an_exception_ends_its_phase(clock):
    watch = Stopwatch()

    def judge() -> None:
        with watch("rewards"):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        judge()
    clock.now += 1
    assert watch.take() == {"rewards": 1.0}


def test_a_profiler_records_one_phase_at_a_time():
    profiler = SimpleProfiler()
    watch = Stopwatch(profiler)
    with watch("evaluation"):
        assert set(profiler.current_actions) == {"[rollout]evaluation"}
        with watch("weights"):
            assert set(profiler.current_actions) == {"[rollout]weights"}
    assert profiler.current_actions == {}
    assert {name: len(seconds) for name, seconds in profiler.recorded_durations.items()} == {
        "[rollout]evaluation": 2,
        "[rollout]weights": 1,
    }

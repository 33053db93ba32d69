"""Seconds of phases that lie inside one another, on a clock that the test advances."""

from __future__ import annotations

import pytest
from lightning.pytorch.profilers import SimpleProfiler

from appo.rollouts import PhaseTimer, timing


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
    timer = PhaseTimer()
    with timer("evaluation"):
        clock.now += 1
        with timer("weights"):
            clock.now += 2
        clock.now += 4
    clock.now += 8
    with timer("evaluation"):
        clock.now += 16
    assert timer.pop() == {"evaluation": 21.0, "weights": 2.0}
    assert timer.pop() == {}


def test_a_phase_that_goes_on_counts_up_to_now(clock):
    timer = PhaseTimer()
    timer.start("update")
    clock.now += 1
    assert timer.pop() == {"update": 1.0}
    clock.now += 2
    timer.stop()
    assert timer.pop() == {"update": 2.0}


def test_seconds_can_be_moved_to_another_phase(clock):
    timer = PhaseTimer()
    with timer("branching"):
        clock.now += 3
    timer.move(1.0, "branching", "tools")
    assert timer.pop() == {"branching": 2.0, "tools": 1.0}


def test_an_exception_ends_its_phase(clock):
    timer = PhaseTimer()

    def judge() -> None:
        with timer("rewards"):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        judge()
    clock.now += 1
    assert timer.pop() == {"rewards": 1.0}


def test_a_phase_may_take_all_the_time_inside_it(clock):
    timer = PhaseTimer()
    with timer("evaluation", undivided=True):
        clock.now += 1
        with timer("sampling"):
            clock.now += 2
        timer.move(1.0, "sampling", "tools")
    with timer("sampling"):
        clock.now += 4
    assert timer.pop() == {"evaluation": 3.0, "sampling": 4.0}


def test_a_timed_function_counts_to_its_phase_and_returns_what_it_returns(clock):
    timer = PhaseTimer()

    def add(a: int, b: int) -> int:
        clock.now += 5
        return a + b

    assert timer.timed("scoring", add)(1, b=2) == 3
    assert timer.pop() == {"scoring": 5.0}


def test_a_profiler_records_one_phase_at_a_time():
    profiler = SimpleProfiler()
    timer = PhaseTimer(profiler)
    with timer("evaluation"):
        assert set(profiler.current_actions) == {"[rollout]evaluation"}
        with timer("weights"):
            assert set(profiler.current_actions) == {"[rollout]weights"}
    assert profiler.current_actions == {}
    assert {name: len(seconds) for name, seconds in profiler.recorded_durations.items()} == {
        "[rollout]evaluation": 2,
        "[rollout]weights": 1,
    }

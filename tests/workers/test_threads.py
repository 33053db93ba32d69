"""Calls in threads; what tools and rewards make of them stands in their own tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from appo.workers.threads import ThreadPool


@pytest.fixture
def make_pool() -> Iterator[Callable[[int], ThreadPool[object]]]:
    pools: list[ThreadPool[object]] = []

    def make(num_threads: int) -> ThreadPool[object]:
        pools.append(ThreadPool(num_threads, "test"))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def collect(pool: ThreadPool[object]) -> dict[int, object]:
    results: dict[int, object] = {}
    while pool.num_in_flight:
        results |= pool.finished(None)
    return results


def raise_(error: BaseException) -> None:
    raise error


def test_a_result_is_what_was_returned_or_raised(make_pool):
    pool = make_pool(2)
    error = SystemExit(3)
    pool.submit(0, lambda: "a", 60.0)
    pool.submit(1, lambda: raise_(error), 60.0)
    pool.submit(2, lambda: None, 60.0)
    assert collect(pool) == {0: "a", 1: error, 2: None}


def test_each_limit_counts_from_where_its_call_begins_and_there_may_be_none(make_pool):
    pool = make_pool(1)
    for key in range(4):
        pool.submit(key, lambda: time.sleep(0.1), 0.35)
    pool.submit(4, lambda: "a", float("inf"))
    assert collect(pool) == {0: None, 1: None, 2: None, 3: None, 4: "a"}


def test_no_call_begins_after_the_pool_is_closed(make_pool):
    begun, release, seen = threading.Event(), threading.Event(), []
    pool = make_pool(1)
    pool.submit(0, lambda: begun.set() or release.wait(60.0), 60.0)
    for key in range(1, 9):
        pool.submit(key, lambda: seen.append(1), 60.0)
    assert begun.wait(60.0)
    pool.close()
    release.set()
    pool.join(60.0)
    assert (seen, pool.num_in_flight, pool.finished()) == ([], 0, {})

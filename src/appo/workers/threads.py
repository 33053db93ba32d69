"""Threads that run calls, each within a time limit; one that hangs is left behind."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class GivenUpError(TimeoutError):
    """A call outlasted its limit; the thread that runs it was left behind."""


@dataclass(eq=False)
class _Call(Generic[T]):
    """What is called.

    Attributes:
        key: as submitted.
        function: as submitted.
        timeout_s: as submitted.
        deadline: when it is given up; known once it runs.
        leave: tells the thread that runs it to take no further call.
    """

    key: int
    function: Callable[[], T]
    timeout_s: float
    deadline: float = math.inf
    leave: threading.Event = field(default_factory=threading.Event)


class ThreadPool(Generic[T]):
    """Threads that run calls for the one thread that submits them and collects their results.

    A call that outlasts its limit, counted from the moment it begins to run, is given up: the thread that hangs in it
    is left behind and another takes its place. That works where the call lets other threads run; what holds the
    interpreter for long, such as one regular expression or one huge power, belongs in a process.

    Args:
        num_threads: calls that run at once; more wait for their turn.
        name: of the threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._name = name
        self._in_flight: dict[int, _Call[T]] = {}
        self._todo: SimpleQueue[_Call[T] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[_Call[T], T | BaseException]] = SimpleQueue()
        self._check_at = math.inf
        """Before this no call can have reached its limit."""
        self._threads: list[tuple[threading.Thread, threading.Event]] = []
        for _ in range(num_threads):
            self._start_thread()

    @property
    def num_in_flight(self) -> int:
        """Calls submitted and not yet returned."""
        return len(self._in_flight)

    def submit(self, key: int, function: Callable[[], T], timeout_s: float) -> None:
        """Has a function called as soon as a thread is free.

        Args:
            key: returned with the result; unique among the calls in flight.
            function: what to call.
            timeout_s: seconds that it may take once it runs; may be infinite.

        Raises:
            ValueError: if the key is in use.
        """
        if key in self._in_flight:
            raise ValueError(f"key must be unique among the calls in flight, got {key} again")
        self._in_flight[key] = call = _Call(key, function, timeout_s)
        self._check_at = min(self._check_at, time.monotonic() + timeout_s)
        self._todo.put(call)

    def finished(self, wait_s: float | None = 0.0) -> dict[int, T | BaseException]:
        """The calls that ended since the last time, each once: by key, what was returned or raised.

        Args:
            wait_s: seconds to wait for the first one; 0 does not wait, None waits as long as any is in flight.
        """
        wait_until = math.inf if wait_s is None else time.monotonic() + wait_s
        results = self._collect() | self._give_up()
        while self._in_flight and not results and (left_s := wait_until - time.monotonic()) > 0.0:
            until_check_s = max(self._check_at - time.monotonic(), 1e-3)
            results = self._collect(min(left_s, until_check_s, threading.TIMEOUT_MAX)) | self._give_up()
        return results

    def close(self) -> None:
        """Drops all calls: no further one begins, and those that run end unheard, and their threads with them."""
        self._in_flight.clear()
        with suppress(Empty):
            while True:
                self._todo.get_nowait()
        for _ in self._threads:
            self._todo.put(None)

    def join(self, timeout_s: float) -> None:
        """Waits for the threads of a closed pool, but no longer than this for all of them together."""
        deadline = time.monotonic() + timeout_s
        for thread, _ in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _collect(self, wait_s: float = 0.0) -> dict[int, T | BaseException]:
        results: dict[int, T | BaseException] = {}
        with suppress(Empty):
            while True:
                may_wait = wait_s > 0.0 and not results
                call, result = self._done.get(may_wait, wait_s if may_wait else None)
                # The late result of a call that was given up finds no entry, or that of a later call with its key.
                if self._in_flight.get(call.key) is call:
                    del self._in_flight[call.key]
                    results[call.key] = result
        return results

    def _give_up(self) -> dict[int, T | BaseException]:
        now = time.monotonic()
        if now < self._check_at:
            return {}
        results: dict[int, T | BaseException] = {}
        for call in [call for call in self._in_flight.values() if call.deadline <= now]:
            del self._in_flight[call.key]
            results[call.key] = GivenUpError(f"took longer than {call.timeout_s:g} s")
            # It may have come back this very moment, and its thread run another call: that one, too, can hang, in a
            # thread that has a successor.
            if not call.leave.is_set():
                call.leave.set()
                self._start_thread()
        # A call that has not begun yet has all its time before it.
        limits = (min(call.deadline, now + call.timeout_s) for call in self._in_flight.values())
        self._check_at = min(limits, default=math.inf)
        return results

    def _start_thread(self) -> None:
        leave = threading.Event()
        # A daemon: a call that hangs must not keep the interpreter from ending.
        thread = threading.Thread(target=self._work, args=(leave,), name=self._name, daemon=True)
        thread.start()
        self._threads = [(t, event) for t, event in self._threads if t.is_alive()] + [(thread, leave)]

    def _work(self, leave: threading.Event) -> None:
        while not leave.is_set() and (call := self._todo.get()):
            call.leave = leave
            call.deadline = time.monotonic() + call.timeout_s
            result: T | BaseException
            try:
                result = call.function()
            except BaseException as error:  # noqa: BLE001  # the caller's; even SystemExit would end the thread unheard
                result = error
            self._done.put((call, result))

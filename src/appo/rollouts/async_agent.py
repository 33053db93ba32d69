"""Sampling beside the thread that trains."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import Empty, SimpleQueue

from appo.core.trajectory import Trajectory
from appo.engines import SamplingParams
from appo.rollouts.agent import AgentLoop, RequestBatch, phase_of, waiting
from appo.rollouts.episode import Limits, RolloutRequest
from appo.rollouts.sampling import SamplingCosts
from appo.rollouts.timing import PhaseTimer

log = logging.getLogger(__name__)

_POLL_S = 0.02
"""How long a tool is waited for before new requests are looked at."""

_STOP_S = 10.0
"""How long one step of the engine may take to end when the thread is to stop."""

Begun = Future[list[Trajectory]]


class AsyncAgent:
    """Runs an agent loop in a thread of its own.

    The thread alone touches the loop, and with it engine, tools and the loop's tokenizer, while anything is in flight;
    in between, the caller may update the engine's weights. A failure ends the thread: every wait for a result raises
    it, and so does `check`.

    Args:
        loop: with an engine that takes nothing from the trainer while it samples, and a tokenizer that nobody else
            uses.
        timer: of the thread that waits for trajectories; None keeps the seconds to itself.
    """

    is_asynchronous = True

    def __init__(self, loop: AgentLoop, timer: PhaseTimer | None = None) -> None:
        self._loop = loop
        self._timer = timer or PhaseTimer()
        self._inbox: SimpleQueue[tuple[Sequence[RolloutRequest], SamplingParams, Begun] | None] = SimpleQueue()
        """What was begun and not taken up; None ends the thread."""
        self._unfinished: list[Begun] = []
        """What was begun, in the eyes of the thread that trains."""
        self._failure: BaseException | None = None
        # Held where something is put in and where the thread ends, so that nothing is put in behind the end.
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        # A daemon: an engine that hangs must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._work, name="appo-sampling", daemon=True)
        self._thread.start()

    def run(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> list[Trajectory]:
        """As `Agent.run`."""
        begun = self.begin(requests, sampling)
        with waiting(self._timer, phase_of(requests), self._loop):
            return begun.result()

    def begin(self, requests: Sequence[RolloutRequest], sampling: SamplingParams) -> Begun:
        """As `Agent.begin`.

        Raises:
            RuntimeError: if the thread was stopped.
        """
        begun = Begun()
        with self._lock:
            self.check()
            if self._is_stopping.is_set():
                raise RuntimeError("the sampling thread was stopped")
            self._inbox.put((requests, sampling, begun))
        self._unfinished.append(begun)
        return begun

    def finish(self, begun: Begun) -> list[Trajectory]:
        """As `Agent.finish`."""
        with waiting(self._timer, "waiting", self._loop):
            return begun.result()

    @property
    def is_idle(self) -> bool:
        self._unfinished = [begun for begun in self._unfinished if not begun.done()]
        return not self._unfinished

    def step(self, phase: str, wait_s: float | None = None) -> None:
        """As `Agent.step`."""
        with waiting(self._timer, phase, self._loop):
            wait(self._unfinished, wait_s, FIRST_COMPLETED)

    def has_ended(self, begun: Begun) -> bool:
        """As `Agent.has_ended`."""
        return begun.done()

    def trajectories(self, begun: Begun) -> list[Trajectory]:
        """As `Agent.trajectories`."""
        return begun.result()

    def check(self) -> None:
        """Raises what has ended the thread, if anything has."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Gives up what is in flight and ends the thread; does nothing if it has ended."""
        self._is_stopping.set()
        self._inbox.put(None)
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            engine = type(self._loop.engine).__name__
            log.warning("a step of %s has not ended within %g s; it is left behind", engine, _STOP_S)

    def sleep(self, weights_follow: bool) -> None:
        """Does nothing: an asynchronous engine takes no memory from the trainer."""

    @property
    def limits(self) -> Limits:
        return self._loop.limits

    def pop_costs(self) -> SamplingCosts:
        """As `Agent.pop_costs`."""
        return self._loop.pop_costs()

    def _work(self) -> None:
        in_flight: dict[RequestBatch, Begun] = {}
        try:
            while not self._is_stopping.is_set():
                self._take_up(in_flight)
                if in_flight:
                    self._loop.advance(_POLL_S)
                for batch in [batch for batch in in_flight if not batch.num_open]:
                    trajectories = self._loop.trajectories(batch)
                    in_flight.pop(batch).set_result(trajectories)
        except BaseException as error:  # noqa: BLE001  # it is raised where the caller waits or checks
            self._failure = error
        self._end(in_flight)

    def _take_up(self, in_flight: dict[RequestBatch, Begun]) -> None:
        """Begins what was put in; waits for something if there is nothing else to do."""
        while True:
            try:
                item = self._inbox.get(block=not in_flight)
            except Empty:
                return
            if item is None:
                return
            requests, sampling, begun = item
            try:
                in_flight[self._loop.begin(requests, sampling)] = begun
            except BaseException as error:
                begun.set_exception(error)
                raise

    def _end(self, in_flight: dict[RequestBatch, Begun]) -> None:
        with self._lock:
            self._is_stopping.set()
            unfinished = list(in_flight.values())
            while not self._inbox.empty():
                if (item := self._inbox.get()) is not None:
                    unfinished.append(item[2])
        for begun in unfinished:
            if self._failure is None:
                begun.cancel()
            else:
                begun.set_exception(self._failure)

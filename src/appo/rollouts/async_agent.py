"""Sampling beside the thread that trains."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from appo.core.trajectory import Trajectory
from appo.engines import SamplingParams
from appo.rollouts.agent import AgentLoop, Flight, SamplingCosts
from appo.rollouts.episode import AgentLimits, Start

log = logging.getLogger(__name__)

_POLL_S = 0.02
"""How long a tool is waited for before new orders are looked at."""

_STOP_S = 10.0
"""How long one step of the engine may take to end when the thread is to stop."""


class SamplingThread:
    """Runs an agent loop in a thread of its own.

    The thread alone touches the loop, and with it engine, tools and the loop's tokenizer, while anything is on its way;
    in between, the caller may update the engine's weights. A failure ends the thread: every wait for a result raises
    it, and so does `check`.

    Args:
        loop: with an engine that takes nothing from the trainer while it samples, and a tokenizer that nobody else
            uses.
    """

    def __init__(self, loop: AgentLoop) -> None:
        self._loop = loop
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._failure: BaseException | None = None
        # Held where an order is put in and where the thread ends, so that none is put in behind the end.
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        # A daemon: an engine that hangs must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._work, name="appo-sampling", daemon=True)
        self._thread.start()

    def run(self, starts: Sequence[Start], sampling: SamplingParams) -> list[Trajectory]:
        """As `AgentLoop.run`, along with what is on its way already."""
        return self.begin(starts, sampling).result()

    def begin(self, starts: Sequence[Start], sampling: SamplingParams) -> Future[list[Trajectory]]:
        """Samples one trajectory a start; the result has the order of `starts`.

        Args:
            starts: at any number.
            sampling: how tokens are drawn.

        Raises:
            RuntimeError: if the thread was stopped.
        """
        order = _Order(starts, sampling, Future())
        with self._lock:
            self.check()
            if self._is_stopping.is_set():
                raise RuntimeError("the sampling thread was stopped")
            self._orders.put(order)
        return order.outcome

    def check(self) -> None:
        """Raises what has ended the thread, if anything has."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Gives up what is on its way and ends the thread; does nothing if it has ended."""
        self._is_stopping.set()
        self._orders.put(None)
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            engine = type(self._loop.engine).__name__
            log.warning("a step of %s has not ended within %g s; it is left behind", engine, _STOP_S)

    def rest(self) -> None:
        """Nothing: an engine that samples aside takes no memory from the trainer."""

    @property
    def limits(self) -> AgentLimits:
        """Of one trajectory."""
        return self._loop.limits

    @property
    def costs(self) -> SamplingCosts:
        """As `AgentLoop.costs`."""
        return self._loop.costs

    def take_costs(self) -> SamplingCosts:
        """As `AgentLoop.take_costs`; with nothing on its way."""
        return self._loop.take_costs()

    def _work(self) -> None:
        flights: dict[Flight, Future[list[Trajectory]]] = {}
        try:
            while not self._is_stopping.is_set():
                self._take_orders(flights)
                if flights:
                    self._loop.advance(_POLL_S)
                for flight in [flight for flight in flights if not flight.num_open]:
                    trajectories = self._loop.trajectories(flight)
                    flights.pop(flight).set_result(trajectories)
        except BaseException as error:  # noqa: BLE001  # it is raised where the caller waits or checks
            self._failure = error
        self._end(flights)

    def _take_orders(self, flights: dict[Flight, Future[list[Trajectory]]]) -> None:
        """Begins what was ordered; waits for an order if there is nothing else to do."""
        while True:
            try:
                order = self._orders.get(block=not flights)
            except Empty:
                return
            if order is None:
                return
            try:
                flights[self._loop.begin(order.starts, order.sampling)] = order.outcome
            except BaseException as error:
                order.outcome.set_exception(error)
                raise

    def _end(self, flights: dict[Flight, Future[list[Trajectory]]]) -> None:
        with self._lock:
            self._is_stopping.set()
            outcomes = list(flights.values())
            while not self._orders.empty():
                if (order := self._orders.get()) is not None:
                    outcomes.append(order.outcome)
        for outcome in outcomes:
            if self._failure is None:
                outcome.cancel()
            else:
                outcome.set_exception(self._failure)


@dataclass(frozen=True, eq=False)
class _Order:
    starts: Sequence[Start]
    sampling: SamplingParams
    outcome: Future[list[Trajectory]]


Agent = AgentLoop | SamplingThread
"""Who samples trajectories for the collector."""

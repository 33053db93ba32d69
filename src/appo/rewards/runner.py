"""Judges trajectories beside the main thread, each within a time limit."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Literal

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import Reward, RewardError, RewardTimeoutError

log = logging.getLogger(__name__)

OnFailure = Literal["error", "zero"]
"""What becomes of a trajectory that cannot be judged: the run ends, or it earns 0 and is counted."""

FAILED = "reward_failed"
"""Part of every outcome where failures are counted: 1 if the reward raised or took too long."""
TIMED_OUT = "reward_timed_out"
"""Part of every outcome where failures are counted: 1 if the reward took too long."""


class RewardRunner:
    """Judges many trajectories at once, in threads that live as long as the call.

    A trajectory that outlasts the limit is given up: the thread that hangs in it is left behind and another takes its
    place. A thread can only be left behind while it lets others run; what holds the interpreter for long, such as one
    regular expression or one huge power, belongs in a process.

    Args:
        reward: judges each trajectory; the runner starts and stops it.
        num_workers: trajectories judged at once; `Reward.max_parallel` may make them fewer.
        timeout_s: seconds that one trajectory may take, from the moment its turn comes.
        on_failure: `error` ends the call with the first failure; `zero` gives a trajectory that cannot be judged 0 for
            its reward and for every part, and adds the parts `reward_failed` and `reward_timed_out` to all outcomes.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self, reward: Reward, num_workers: int = 16, timeout_s: float = 120.0, on_failure: OnFailure = "error"
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"rollout.reward_workers must be positive, got {num_workers}")
        if not timeout_s > 0.0:
            raise ValueError(f"rollout.reward_timeout_s must be positive, got {timeout_s}")
        if on_failure not in ("error", "zero"):
            raise ValueError(f"rollout.on_reward_failure must be error or zero, got {on_failure!r}")
        self.reward = reward
        self.num_workers = min(num_workers, reward.max_parallel or num_workers)
        self.timeout_s = timeout_s
        self.on_failure = on_failure
        self._logged: set[type[BaseException]] = set()

    def start(self) -> None:
        """Starts the reward."""
        self.reward.start()

    def stop(self) -> None:
        """Stops the reward."""
        self.reward.stop()

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[RewardResult]:
        """Judges trajectories.

        Returns:
            Outcomes, in the order of the trajectories.

        Raises:
            RewardError: if one cannot be judged and `on_failure` is `error`; the cause is what the reward raised.
        """
        round_ = _Round(self.reward, trajectories, self.timeout_s, stops_at_failure=self.on_failure == "error")
        results = round_.run(min(self.num_workers, len(trajectories)))
        failures = {i: result for i, result in enumerate(results) if isinstance(result, BaseException)}
        if not failures:
            outcomes = [result for result in results if isinstance(result, RewardResult)]
        elif self.on_failure == "error":
            number, error = min(failures.items())
            # A traceback would show what the error says.
            cause = error if trajectories[number].prompt.is_public else None
            raise RewardError(self._failure(number, trajectories, error)) from cause
        else:
            self._log(failures, trajectories)
            outcomes = _zeros_for_failures(results)
        if self.on_failure == "zero":
            outcomes = [replace(outcome, parts={FAILED: 0.0, TIMED_OUT: 0.0, **outcome.parts}) for outcome in outcomes]
        return outcomes

    def _failure(self, number: int, trajectories: Sequence[Trajectory], error: BaseException) -> str:
        prompt = trajectories[number].prompt
        told = f": {error}" if prompt.is_public else ""
        return (
            f"{type(self.reward).__name__} failed on trajectory {number + 1} of {len(trajectories)}, of prompt "
            f"{prompt.id!r} ({type(error).__name__}{told}); rollout.on_reward_failure=zero would go on"
        )

    def _log(self, failures: dict[int, BaseException], trajectories: Sequence[Trajectory]) -> None:
        """Tells people once of each kind; the metrics count them all."""
        for number, error in failures.items():
            if type(error) not in self._logged:
                self._logged.add(type(error))
                log.warning(
                    "%s; further errors of this kind are only counted",
                    self._failure(number, trajectories, error).partition("; rollout.")[0],
                    exc_info=error if trajectories[number].prompt.is_public else None,
                )


@dataclass(eq=False)
class _Worker:
    """A thread that judges one trajectory after the other; left behind, it ends as soon as its reward returns."""

    number: int = -1
    """Of the trajectory in hand."""
    started_at: float = math.inf
    is_abandoned: bool = False


class _Round:
    """One call of the runner: what is still to be judged, and what came of the rest."""

    def __init__(
        self, reward: Reward, trajectories: Sequence[Trajectory], timeout_s: float, *, stops_at_failure: bool
    ) -> None:
        self.reward = reward
        self.trajectories = trajectories
        self.timeout_s = timeout_s
        self.stops_at_failure = stops_at_failure
        self.results: list[RewardResult | BaseException | None] = [None] * len(trajectories)
        self._next = 0
        self._workers: list[_Worker] = []
        self._ended: SimpleQueue[_Worker] = SimpleQueue()
        # Held for a few steps at a time, never while a trajectory is judged.
        self._lock = threading.Lock()

    def run(self, num_workers: int) -> list[RewardResult | BaseException | None]:
        """Judges all trajectories, or those until one fails; what was not judged stays None."""
        self._workers = [self._new_worker() for _ in range(num_workers)]
        try:
            while self._workers:
                try:
                    self._workers.remove(self._ended.get(timeout=self._until_check_s()))
                except Empty:
                    self._give_up()
                if self.stops_at_failure and any(isinstance(result, BaseException) for result in self.results):
                    break
        finally:
            with self._lock:
                for worker in self._workers:
                    worker.is_abandoned = True
        return self.results

    def _until_check_s(self) -> float:
        """Seconds until the trajectory that was begun first can have reached its limit."""
        with self._lock:
            first = min(worker.started_at for worker in self._workers)
        return min(max(first + self.timeout_s - time.monotonic(), 1e-3), threading.TIMEOUT_MAX)

    def _give_up(self) -> None:
        with self._lock:
            oldest = time.monotonic() - self.timeout_s
            late = [worker for worker in self._workers if worker.started_at <= oldest]
            for worker in late:
                worker.is_abandoned = True
                self._workers.remove(worker)
                self.results[worker.number] = RewardTimeoutError(
                    f"took longer than rollout.reward_timeout_s = {self.timeout_s:g}"
                )
        if self._next < len(self.trajectories):
            self._workers += [self._new_worker() for _ in late]

    def _new_worker(self) -> _Worker:
        worker = _Worker()
        with self._lock:
            self._take(worker)
        # A daemon: a reward that hangs must not keep the interpreter from ending.
        threading.Thread(target=self._work, args=(worker,), name="appo-reward", daemon=True).start()
        return worker

    def _work(self, worker: _Worker) -> None:
        while worker.number < len(self.trajectories):
            result = self._judge(self.trajectories[worker.number])
            with self._lock:
                if worker.is_abandoned:
                    return
                self.results[worker.number] = result
                if self.stops_at_failure and not isinstance(result, RewardResult):
                    self._next = len(self.trajectories)
                self._take(worker)
        self._ended.put(worker)

    def _take(self, worker: _Worker) -> None:
        """Gives a worker its next trajectory; a number beyond the last one ends it. The lock is held."""
        worker.number = self._next
        worker.started_at = time.monotonic() if self._next < len(self.trajectories) else math.inf
        self._next += 1

    def _judge(self, trajectory: Trajectory) -> RewardResult | BaseException:
        try:
            return _checked(self.reward(trajectory))
        except BaseException as error:  # noqa: BLE001  # even SystemExit would end the thread without a word
            return error


def _checked(outcome: RewardResult) -> RewardResult:
    """Refuses what cannot be trained on or written down."""
    if not isinstance(outcome, RewardResult):
        raise TypeError(f"a reward must return a RewardResult, got {type(outcome).__name__}")
    for name, value in (("reward", outcome.reward), *outcome.parts.items()):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    return outcome


def _zeros_for_failures(results: Sequence[RewardResult | BaseException | None]) -> list[RewardResult]:
    """Outcomes where failures earn 0 for every part that the others have: means of parts are then over all."""
    judged = [result for result in results if isinstance(result, RewardResult)]
    parts = {name: 0.0 for outcome in judged for name in outcome.parts} or {"accuracy": 0.0}
    return [
        result
        if isinstance(result, RewardResult)
        else RewardResult(
            0.0,
            {**parts, FAILED: 1.0, TIMED_OUT: float(isinstance(result, RewardTimeoutError))},
            f"not judged: {type(result).__name__}: {result}",
        )
        for result in results
    ]

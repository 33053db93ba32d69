"""Scores trajectories beside the main thread, each within a time limit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import Reward, RewardError
from appo.rewards.function import as_reward
from appo.rewards.queue import RewardQueue, Scored

log = logging.getLogger(__name__)

OnFailure = Literal["error", "zero"]
"""What becomes of a trajectory that cannot be scored: the run ends, or it earns 0 and is counted."""

FAILED = "reward_failed"
"""Part of every reward where failures are counted: 1 if the reward raised or took too long."""
TIMED_OUT = "reward_timed_out"
"""Part of every reward where failures are counted: 1 if the reward, or what it asked, took too long."""


class RewardRunner:
    """Scores many trajectories at once, in threads that live as long as the call or the queue.

    A trajectory that outlasts the limit is given up, which takes a reward that lets other threads run.

    Args:
        reward: scores each trajectory; the runner starts and stops it. A plain function will do.
        num_workers: trajectories scored at once; `Reward.max_parallel` may make them fewer.
        timeout_s: seconds that one trajectory may take, from the moment its turn comes, or a batch of them where the
            reward scores many at once.
        on_failure: `error` ends the call with the first failure; `zero` gives a trajectory that cannot be scored 0 for
            its reward and for every part, and adds the parts `reward_failed` and `reward_timed_out` to all rewards.

    Raises:
        ValueError: if an option is out of range.
    """

    def __init__(
        self,
        reward: Reward | Callable[..., Any],
        num_workers: int = 16,
        timeout_s: float = 120.0,
        on_failure: OnFailure = "error",
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"rollout.rewards.workers must be positive, got {num_workers}")
        if not timeout_s > 0.0:
            raise ValueError(f"rollout.rewards.timeout_s must be positive, got {timeout_s}")
        if on_failure not in ("error", "zero"):
            raise ValueError(f"rollout.rewards.on_failure must be error or zero, got {on_failure!r}")
        self.reward = as_reward(reward)
        self.num_workers = min(num_workers, self.reward.max_parallel or num_workers)
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
        """Scores trajectories.

        Returns:
            One result a trajectory, in their order.

        Raises:
            RewardError: if one cannot be scored and `on_failure` is `error`; the cause is what the reward raised.
        """
        queue = self.queue(len(trajectories))
        try:
            number = queue.submit(trajectories)
            queue.finished(None)
            return self.results(queue.take(number), trajectories)
        finally:
            queue.close()

    def queue(self, most: int) -> RewardQueue:
        """Scores trajectories while the caller does something else.

        Args:
            most: trajectories that may be scored at once.
        """
        return RewardQueue(
            self.reward,
            min(self.num_workers, max(1, most)),
            self.timeout_s,
            stops_at_failure=self.on_failure == "error",
        )

    def results(self, scored: Sequence[Scored], trajectories: Sequence[Trajectory]) -> list[RewardResult]:
        """What a queue has found, with what `on_failure` says of failures.

        Raises:
            RewardError: as a call does.
        """
        failures = {i: result for i, result in enumerate(scored) if isinstance(result, BaseException)}
        if not failures:
            results = [result for result in scored if isinstance(result, RewardResult)]
        elif self.on_failure == "error":
            number, error = min(failures.items())
            # A traceback would show what the error says.
            cause = error if trajectories[number].prompt.is_public else None
            raise RewardError(self._failure(number, trajectories, error)) from cause
        else:
            self._log(failures, trajectories)
            results = _zeros_for_failures(scored)
        if self.on_failure == "zero":
            results = [replace(result, parts={FAILED: 0.0, TIMED_OUT: 0.0, **result.parts}) for result in results]
        return results

    def _failure(self, number: int, trajectories: Sequence[Trajectory], error: BaseException) -> str:
        prompt = trajectories[number].prompt
        told = f": {error}" if prompt.is_public else ""
        return (
            f"{type(self.reward).__name__} failed on trajectory {number + 1} of {len(trajectories)}, of prompt "
            f"{prompt.id!r} ({type(error).__name__}{told}); rollout.rewards.on_failure=zero would go on"
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


def _zeros_for_failures(results: Sequence[Scored]) -> list[RewardResult]:
    """Results where failures earn 0 for every part that the others have: means of parts are then over all."""
    scored = [result for result in results if isinstance(result, RewardResult)]
    parts = {name: 0.0 for result in scored for name in result.parts} or {"accuracy": 0.0}
    return [
        result
        if isinstance(result, RewardResult)
        else RewardResult(
            0.0,
            {**parts, FAILED: 1.0, TIMED_OUT: float(isinstance(result, TimeoutError))},
            f"not scored: {type(result).__name__}: {result}",
        )
        for result in results
    ]

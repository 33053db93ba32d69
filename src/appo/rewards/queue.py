"""Trajectories that are scored beside what the main thread does, group by group."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards.base import Reward, RewardTimeoutError
from appo.workers.threads import GivenUpError, ThreadPool

log = logging.getLogger(__name__)

Scored = RewardResult | BaseException | None
"""A result or an error; None for what was not begun because another failed."""

_AHEAD = -1
"""Key of the batch that is scored ahead, of whichever groups: one at a time."""


class RewardQueue:
    """Scores groups of trajectories in threads, for the one thread that submits them, and forgets what it hands out.

    Args:
        reward: started.
        num_threads: trajectories scored at once.
        timeout_s: seconds that one trajectory may take, or a batch of them where the reward scores many at once.
        stops_at_failure: begins nothing more once a trajectory could not be scored; all groups then count as finished.
    """

    def __init__(self, reward: Reward, num_threads: int, timeout_s: float, *, stops_at_failure: bool) -> None:
        self._reward = reward
        self._timeout_s = timeout_s
        self._stops_at_failure = stops_at_failure
        self._has_failed = threading.Event()
        self._stopped = False
        self._pool: ThreadPool[RewardResult | None] = ThreadPool(num_threads, "appo-reward")
        self._num_groups = self._num_submitted = 0
        self._trajectories: dict[int, Trajectory] = {}
        self._scored: dict[int, Scored] = {}
        self._groups: dict[int, range] = {}
        """Of each group that was not handed out, the numbers of its trajectories."""
        self._unfinished: dict[int, int] = {}
        """Trajectories of each group that are not scored, by the group's number."""
        self._group_of: dict[int, int] = {}
        """The group of each trajectory that is not scored, by their numbers."""
        self._ahead: deque[int] = deque()
        """Trajectories that wait for being scored ahead."""
        self._batch: list[int] = []
        """Those that are being scored ahead; each comes by itself behind."""

    @property
    def num_in_flight(self) -> int:
        """Groups that are not finished."""
        return len(self._unfinished)

    def submit(self, trajectories: Sequence[Trajectory]) -> int:
        """Has a group scored; returns its number."""
        group, first = self._num_groups, self._num_submitted
        numbers = range(first, first + len(trajectories))
        self._num_groups, self._num_submitted = group + 1, numbers.stop
        self._trajectories |= zip(numbers, trajectories, strict=True)
        self._scored |= dict.fromkeys(numbers)
        self._groups[group] = numbers
        self._unfinished[group] = len(numbers)
        self._group_of |= dict.fromkeys(numbers, group)
        if self._reward.num_ahead is None:
            self._score(numbers)
        else:
            self._ahead += numbers
            self._score_ahead()
        return group

    def finished(self, wait_s: float | None = 0.0) -> list[int]:
        """The groups that were finished since the last time.

        Args:
            wait_s: seconds to wait for all groups; None waits as long as it takes.
        """
        deadline = math.inf if wait_s is None else time.monotonic() + wait_s
        groups = self._pop_finished()
        while self._unfinished and (results := self._pool.finished(max(0.0, deadline - time.monotonic()))):
            self._take(results)
            groups += self._pop_finished()
        return groups

    def wait(self) -> None:
        """Waits until something was scored; `finished` then tells which groups are."""
        self._take(self._pool.finished(None))

    def take(self, group: int) -> list[Scored]:
        """What became of a finished group, in the order of its trajectories; only once."""
        numbers = self._groups.pop(group)
        for number in numbers:
            del self._trajectories[number]
        return [self._scored.pop(number) for number in numbers]

    def close(self) -> None:
        """Drops what is not scored."""
        self._unfinished.clear()
        self._pool.close()

    def _take(self, results: Mapping[int, RewardResult | BaseException | None]) -> None:
        for key, result in results.items():
            if key == _AHEAD:
                self._end_ahead(result)
            else:
                self._end(key, result)

    def _pop_finished(self) -> list[int]:
        groups = [group for group, number in self._unfinished.items() if self._stopped or not number]
        for group in groups:
            del self._unfinished[group]
        return groups

    def _score(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if self._scored[number] is None:
                self._pool.submit(number, partial(self._score_one, self._trajectories[number]), self._timeout_s)

    def _score_one(self, trajectory: Trajectory) -> RewardResult | None:
        if self._stops_at_failure and self._has_failed.is_set():
            return None
        try:
            return _checked(self._reward(trajectory))
        except BaseException:
            # Here, or this very thread would begin with the next one before anybody has noticed.
            self._has_failed.set()
            raise

    def _end(self, number: int, result: RewardResult | BaseException | None) -> None:
        if isinstance(result, GivenUpError):
            result = RewardTimeoutError(f"took longer than rollout.rewards.timeout_s = {self._timeout_s:g}")
        self._stopped |= self._stops_at_failure and isinstance(result, BaseException)
        group = self._group_of.pop(number)
        if group in self._groups:
            self._scored[number] = result
        if group in self._unfinished:
            self._unfinished[group] -= 1

    def _score_ahead(self) -> None:
        """Has the next batch scored, unless one is; the trajectories of one that fails are scored one by one.

        Only the one to blame fails again. Those of a batch that takes too long are given up together.
        """
        if self._batch or not self._ahead or self._stopped:
            return
        size = min(self._reward.num_ahead or 1, len(self._ahead))
        self._batch = [self._ahead.popleft() for _ in range(size)]
        batch = [self._trajectories[number] for number in self._batch]
        self._pool.submit(_AHEAD, partial(self._reward.score_ahead, batch), self._timeout_s)

    def _end_ahead(self, result: RewardResult | BaseException | None) -> None:
        numbers, self._batch = self._batch, []
        if isinstance(result, BaseException):
            log.warning("a batch of %d was not scored (%s)", len(numbers), type(result).__name__)
        if isinstance(result, GivenUpError):
            what = f"a batch of {len(numbers)} took longer than rollout.rewards.timeout_s = {self._timeout_s:g}"
            for number in numbers:
                self._end(number, RewardTimeoutError(what))
        elif not self._stopped:
            self._score(numbers)
        self._score_ahead()


def _checked(result: RewardResult) -> RewardResult:
    """Refuses what cannot be trained on or written down."""
    if not isinstance(result, RewardResult):
        raise TypeError(f"a reward must return a RewardResult, got {type(result).__name__}")
    for name, value in (("reward", result.reward), *result.parts.items()):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    return result

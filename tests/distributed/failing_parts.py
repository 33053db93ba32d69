"""Components that end the second of two processes, or hold it up, at a place of their choice."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass

from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import RewardResult, Trajectory
from appo.engines import Completion, HFEngine
from appo.losses import ClippedLoss
from tests.small_run import EvenTokens


def is_second() -> bool:
    return os.environ.get("LOCAL_RANK") == "1"


@dataclass(frozen=True)
class KilledInSampling(EvenTokens):
    def __call__(self, trajectory: Trajectory) -> RewardResult:
        if is_second():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(trajectory)


@dataclass(frozen=True)
class KilledInUpdate(ClippedLoss):
    def __call__(
        self, log_probs: Tensor, entropies: Tensor, batch: TrajectoryBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if is_second():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(log_probs, entropies, batch)


@dataclass(frozen=True)
class HangingInUpdate(ClippedLoss):
    def __call__(
        self, log_probs: Tensor, entropies: Tensor, batch: TrajectoryBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if is_second():
            threading.Event().wait()
        return super().__call__(log_probs, entropies, batch)


TIMED_OUT = "the judge timed out: connection closed by peer"


@dataclass(frozen=True)
class TimedOutReward(EvenTokens):
    """Fails on the first of two processes alone."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        if not is_second():
            raise RuntimeError(TIMED_OUT)
        return super().__call__(trajectory)


@dataclass(frozen=True)
class TimedOutLoss(ClippedLoss):
    """Fails on the first of two processes alone."""

    def __call__(
        self, log_probs: Tensor, entropies: Tensor, batch: TrajectoryBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not is_second():
            raise RuntimeError(TIMED_OUT)
        return super().__call__(log_probs, entropies, batch)


@dataclass
class HangingEngine(HFEngine):
    def step(self) -> list[Completion]:
        if is_second():
            threading.Event().wait()
        return super().step()

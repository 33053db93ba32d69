"""Components that end the second of two processes, or hold it up, at a place of their choice."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import lightning as L
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import RewardResult, Trajectory
from appo.distributed import comm
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


class SignaledInPhase(L.Callback):
    """Sends one process a signal in a phase of the second iteration.

    Args:
        phase: by its name.
        rank: of the process.
        number: of the signal.
        has_worked: whether the process has done what is to be done in the phase, and the others wait for it.
    """

    def __init__(self, phase: str, rank: int, number: int, has_worked: bool) -> None:
        self.phase, self.rank, self.number, self.has_worked = phase, rank, number, has_worked

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        whole = comm.phase

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            is_it = (name, comm.rank(), trainer.current_epoch) == (self.phase, self.rank, 1)
            with whole(name):
                if is_it and not self.has_worked:
                    os.kill(os.getpid(), self.number)
                yield
                if is_it and self.has_worked:
                    os.kill(os.getpid(), self.number)

        comm.phase = phase

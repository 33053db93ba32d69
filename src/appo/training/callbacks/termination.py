"""A run that is told to end: what a cluster does before it takes the machine away."""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

import lightning as L

from appo.distributed import comm
from appo.training.callbacks.common import callbacks_of

log = logging.getLogger(__name__)


class EndOnSignal(L.Callback):
    """Lets the iteration come to its end on SIGTERM, so that its checkpoint is written, and then ends the training.

    A second signal ends it at once, as Lightning does: what is resumed begins with the iteration that was interrupted.
    Processes of one run end together, whichever of them was told.
    """

    def __init__(self) -> None:
        self.has_ended = False
        """Whether the training was ended before its time."""
        self._is_told = False
        self._previous: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning's own handler calls a collective wherever the signal meets the process.
        self._previous = signal.signal(signal.SIGTERM, self._handle)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with comm.phase("checkpoint"):
            is_told = any(comm.all_gather(self._is_told))
        is_last = trainer.max_epochs == trainer.current_epoch + 1
        if is_told and not trainer.should_stop and not is_last:
            self.has_ended = trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_told:
            self._restore()
            signal.raise_signal(signal.SIGTERM)
            return
        self._is_told = True
        log.warning("told to end: the run ends behind this iteration, or at once if it is told again")

    def _restore(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


def was_ended(trainer: L.Trainer) -> bool:
    """Whether a signal has ended the training before its time."""
    return any(callback.has_ended for callback in callbacks_of(trainer, EndOnSignal))

"""Checkpoints at the end of iterations, those of a user's own callbacks too."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import Tensor

from appo.distributed import comm
from appo.training.callbacks.common import callbacks_of, run_folder

log = logging.getLogger(__name__)

_FOLDER = "checkpoints"
_LARGE_SHARE = 0.05
"""Of an iteration's seconds, from which on those of writing are told."""
_LEAST_S = 5.0
"""Of writing that are told."""
_NEVER_SAVED = -1


class LastCheckpoint(ModelCheckpoint):
    """Keeps the last iteration in ``checkpoints/`` of a run's folder, which ``--ckpt_path last`` resumes.

    A class of its own, so that it can stand beside a `ModelCheckpoint` with the same options.

    Args:
        every_n_iterations: how often it is written; with the last one, or where a signal ends the run, at any rate.
    """

    def __init__(self, every_n_iterations: int = 1) -> None:
        if every_n_iterations < 1:
            raise ValueError(f"every_n_iterations of LastCheckpoint must be positive, got {every_n_iterations}")
        super().__init__(filename="{epoch}", save_last="link", save_on_train_epoch_end=True)
        # Not Lightning's `every_n_epochs`, which passes over the iteration that a run ends with.
        self.every_n_iterations = every_n_iterations
        self._outdated: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            self.save_last = True  # a file that is still to be written cannot be linked

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        number = trainer.current_epoch + 1
        if number % self.every_n_iterations == 0 or number == trainer.max_epochs or trainer.should_stop:
            with comm.phase("checkpoint"):  # Lightning's own barriers name no rank that is lost
                super().on_train_epoch_end(trainer, pl_module)

    def _remove_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Not yet: Lightning does so while the link points to it, and a run that was cut off then would have none."""
        self._outdated.append(filepath)

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        # One name for good: Lightning takes another where a run that is gone on with finds the file.
        self.last_model_path = self.format_checkpoint_name(monitor_candidates, self.CHECKPOINT_NAME_LAST)
        super()._save_last_checkpoint(trainer, monitor_candidates)
        while self._outdated:
            super()._remove_checkpoint(trainer, self._outdated.pop())

    @staticmethod
    def _link_checkpoint(trainer: L.Trainer, filepath: str, linkpath: str) -> None:
        """Lets the link point elsewhere at once: Lightning removes it first, and a run killed then would begin anew."""
        link = Path(linkpath)
        if trainer.is_global_zero:
            if link.is_dir() and not link.is_symlink():
                shutil.rmtree(link)
            new = link.with_suffix(".new")
            new.unlink(missing_ok=True)
            new.symlink_to(os.path.relpath(filepath, link.parent))
            new.replace(link)
        trainer.strategy.barrier()


class IterationCheckpoints(L.Callback):
    """Lets every `ModelCheckpoint` of a run save when an iteration ends.

    Lightning waits for a validation, which may never come, and passes over an iteration without an optimizer step, from
    which a run would sample again what it has sampled. The log says so once if writing takes long for what an iteration
    takes.
    """

    def __init__(self) -> None:
        self._iteration_s, self._started = 0.0, perf_counter()
        self._writing: float | None = None
        """When the first file since the last batch was begun."""
        self._has_warned = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        checkpoints = callbacks_of(trainer, ModelCheckpoint)
        keep_in(run_folder(trainer), checkpoints)
        for callback in checkpoints:
            if callback._save_on_train_epoch_end is not None:
                continue
            if not (callback.monitor or "").startswith("validation/"):
                callback._save_on_train_epoch_end = True
            elif stage == "fit":
                _check_validation(trainer, callback.monitor)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for callback in callbacks_of(trainer, ModelCheckpoint):
            callback._last_global_step_saved = _NEVER_SAVED
        self._end_writing(trainer)
        self._started = perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._writing = None  # what was saved within an iteration is none of its end

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._writing is None:
            self._writing = perf_counter()
            self._iteration_s = self._writing - self._started

    def _end_writing(self, trainer: L.Trainer) -> None:
        started, self._writing = self._writing, None
        if started is None or self._has_warned or not trainer.is_global_zero:
            return
        seconds = perf_counter() - started
        if seconds >= max(_LEAST_S, _LARGE_SHARE * self._iteration_s):
            self._has_warned = True
            log.warning(
                "writing checkpoints took %.1f s after an iteration of %.1f s; LastCheckpoint with "
                "every_n_iterations=N in trainer.callbacks writes every N-th alone",
                seconds,
                self._iteration_s,
            )


def keep_in(folder: Path, callbacks: Sequence[L.Callback]) -> None:
    """Gives every `ModelCheckpoint` without a folder that of a run, in which it is looked for before a run goes on."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / _FOLDER)


def _check_validation(trainer: L.Trainer, monitor: str | None) -> None:
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every is not None and epochs is not None and 0 <= epochs < every:
        raise ValueError(
            f"trainer.check_val_every_n_epoch must not exceed trainer.max_epochs, {epochs}, for a ModelCheckpoint that "
            f"monitors {monitor}, got {every}"
        )

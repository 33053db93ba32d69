"""A run that is told to end: what a cluster does before it takes the machine away."""

from __future__ import annotations

import _thread
import faulthandler
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from appo.distributed import comm
from appo.training.callbacks.common import callbacks_of

log = logging.getLogger(__name__)

TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
"""Status of a process that ended because it was told to, and of one that a person has ended."""

_PATIENCE_S = 10.0
"""Seconds that a run which a person has ended may take for its end before it can be cut off, and a logger before it."""

_END_S = 120.0
"""Seconds after which it is cut off by itself."""

_STDERR = 2
"""The descriptor, whatever has become of Python's file."""

_WRITERS = ("lightning.pytorch.loggers", "lightning.fabric.loggers", "tensorboard", "torch.utils.tensorboard", "tqdm")
"""Packages that take locks while they write, which are waited for when they end."""

_MOMENT_S = 0.01


class EndOnSignal(L.Callback):
    """Lets the iteration come to its end on SIGTERM, so that its checkpoint is written, and then ends the training.

    A second signal ends it at once, as Lightning does: what is resumed begins with the iteration that was interrupted.
    Processes of one run end together, whichever of them was told. In a job of SLURM the signal that comes before its
    time is up (``sbatch --signal``) does the same, and the job is to be requeued: Lightning would save a checkpoint
    wherever in the iteration it meets the process.

    SIGINT ends a run at once, with an end of its own: engines and tools are stopped. Lightning is deaf to further ones
    then; here one that comes ten seconds later, or after that, cuts off an end that does not come.
    """

    def __init__(self) -> None:
        self.has_ended = False
        """Whether the training was ended before its time."""
        self.asks_to_requeue = False
        """Whether that was for SLURM to start the job again."""
        self._told: int | None = None
        self._requeue_signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._interrupted_s = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning's own handlers call a collective, and save a checkpoint, wherever a signal meets the process.
        self._listen(signal.SIGTERM)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            self._requeue_signal = environment.requeue_signal
            self._listen(self._requeue_signal)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with comm.phase("checkpoint"):
            told = [number for number in comm.all_gather(self._told) if number is not None]
        is_last = trainer.max_epochs == trainer.current_epoch + 1
        if told and not trainer.should_stop and not is_last:
            self.has_ended = trainer.should_stop = True
            self.asks_to_requeue = self._requeue_signal in told

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()
        if isinstance(exception, KeyboardInterrupt):
            self._interrupted_s = time.monotonic()
            signal.signal(signal.SIGINT, self._cut_off)

    def _cut_off(self, number: int, frame: FrameType | None) -> None:
        left_s = _PATIENCE_S - (time.monotonic() - self._interrupted_s)
        if left_s > 0.0:
            log.warning("the run is ending; interrupted again in %.0f s it is cut off", left_s)
            return
        log.error("the run does not end and is cut off")
        os._exit(INTERRUPTED)

    def _listen(self, number: int) -> None:
        self._previous[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._told is not None:
            self.asks_to_requeue = self._requeue_signal in (self._told, number)
            self._restore()
            signal.raise_signal(signal.SIGTERM)
            return
        self._told = number
        log.warning("told to end: the run ends behind this iteration, or at once if it is told again")

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


@contextmanager
def ends_when_interrupted() -> Iterator[None]:
    """Has SIGINT end what runs within, and `limit_end` the process where that does not come to an end.

    Python raises `KeyboardInterrupt` between any two of its instructions: also where a lock was just taken that nobody
    gives back then, and the end of the run waits for it. What a logger or a progress bar writes is written first.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    deadline: float | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal deadline
        if deadline is None:
            deadline = time.monotonic() + _PATIENCE_S
        if _is_writing(frame) and time.monotonic() < deadline:
            # No `threading.Timer`: to start one takes locks that may have been taken here.
            _thread.start_new_thread(_interrupt_again, (threading.get_ident(),))
            return
        deadline = None
        limit_end()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.cancel_dump_traceback_later()


def _is_writing(frame: FrameType | None) -> bool:
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if any(module == package or module.startswith(f"{package}.") for package in _WRITERS):
            return True
        frame = frame.f_back
    return False


def _interrupt_again(thread: int) -> None:
    time.sleep(_MOMENT_S)
    signal.pthread_kill(thread, signal.SIGINT)


def limit_end() -> None:
    """Ends this process in two minutes, unless it has ended by then, and writes where each of its threads stands.

    Something may hang that an end waits for: a tool, an engine, a connection. `faulthandler` needs nothing of Python's
    to do so; ``faulthandler.cancel_dump_traceback_later()`` takes it back.
    """
    faulthandler.dump_traceback_later(_END_S, exit=True, file=_STDERR)


def was_ended(trainer: L.Trainer) -> bool:
    """Whether a signal has ended the training before its time."""
    return any(callback.has_ended for callback in callbacks_of(trainer, EndOnSignal))


def requeue_if_asked(trainer: L.Trainer) -> None:
    """Has SLURM start the job again if its signal has ended the training; once all files are written."""
    if not trainer.is_global_zero or not any(each.asks_to_requeue for each in callbacks_of(trainer, EndOnSignal)):
        return
    job = os.environ["SLURM_JOB_ID"]
    if (array := os.environ.get("SLURM_ARRAY_JOB_ID")) is not None:
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    log.info("SLURM is asked to start job %s again, which goes on behind this iteration", job)
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = (getattr(error, "stderr", None) or str(error)).strip()
        log.error("scontrol requeue %s has failed (%s): start the job again yourself", job, why)

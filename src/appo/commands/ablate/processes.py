"""Commands of ``appo`` as processes of their own, which end when this one is stopped."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

_GRACE_S = 15.0
"""Seconds in which an interrupted run may stop its engine and tools."""


class Stopped(Exception):  # noqa: N818  # not an error
    """A command was stopped, or not started, since the ablation is being stopped."""


class Children:
    """The processes that are running; may be used by several threads.

    Args:
        num_threads: of the tensor maths of a process, unless the environment says; none leaves it to torch.
        keep_open: file descriptors that the processes hold as well.
    """

    def __init__(self, num_threads: int | None = None, keep_open: Sequence[int] = ()) -> None:
        self._environment = dict(os.environ)
        if num_threads is not None:
            self._environment.setdefault("OMP_NUM_THREADS", str(num_threads))
        self._keep_open = tuple(keep_open)
        # A signal may come while this thread holds it.
        self._lock = threading.RLock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._interrupted: set[subprocess.Popen[bytes]] = set()
        self._is_stopping = False

    def run(self, args: Sequence[str], log: Path) -> int:
        """Runs ``appo`` with `args` and appends what it says to `log`; returns its exit status.

        Raises:
            Stopped: if `stop` was called before it ended.
        """
        command = [sys.executable, "-m", "appo", *args]
        with log.open("ab") as output:
            output.write(f"$ {subprocess.list2cmdline(command)}\n".encode())
            output.flush()
            with self._lock:
                if self._is_stopping:
                    raise Stopped
                # In a session of its own: a Ctrl-C of the terminal comes to this process alone, which passes it on.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    env=self._environment, pass_fds=self._keep_open, start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.discard(process)
            if self._is_stopping:
                raise Stopped
        return status

    def interrupt(self) -> None:
        """Interrupts what is running, once each, and lets nothing start any more."""
        with self._lock:
            self._is_stopping = True
            for process in self._running - self._interrupted:
                process.send_signal(signal.SIGINT)
            self._interrupted |= self._running

    def stop(self) -> None:
        """Interrupts what is running, and kills what does not end by that."""
        self.interrupt()
        with self._lock:
            running = list(self._running)
        try:
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE_S)
        finally:  # at once if a user is not willing to wait
            for process in running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Holds the lock of a folder; yields the descriptor that keeps it as long as a process has it open.

    Raises:
        ValueError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ablation.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out must not be in use, got {folder}, in which an ablation or one of its runs is at "
                             "work") from None  # fmt: skip
        yield file.fileno()


@contextmanager
def interruptible(children: Children) -> Iterator[None]:
    """Makes Ctrl-C, and a request to terminate, interrupt what is running, so that no run is left behind.

    What is raised where the signal finds this thread may be lost there, as in a callback of the garbage collector; the
    processes have ended by then, and whoever waits for one is told so by `Stopped`.
    """

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        children.interrupt()
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

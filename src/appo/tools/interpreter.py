"""The caller's side of the warm interpreter in `python_worker.py`."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appo.tools.base import ToolError
from appo.tools.python_worker import EXIT_CODE_BYTES, READY

_WORKER = Path(__file__).with_name("python_worker.py")
_START_S = 60.0
"""Seconds that a new interpreter may take to become ready."""
_KILL_S = 2.0
"""Seconds that an interpreter may take to end a call, or itself, before it counts as hung."""
_CHUNK_BYTES = 2**16
_LOST = "The interpreter was killed."


class InterpreterLostError(ToolError):
    """The interpreter was gone before it read the code; a new one can run it."""


@dataclass(frozen=True)
class Execution:
    """What became of one call.

    Attributes:
        output: what it printed, up to the limit, undecodable bytes replaced.
        end: `exit` by itself or by a signal of its own making, `timeout`, `cut` because it printed too much, or `lost`
            with the interpreter.
        exit_code: minus the number of the signal if one ended it; None unless `end` is `exit`.
    """

    output: str
    end: Literal["exit", "timeout", "cut", "lost"]
    exit_code: int | None = None


class Interpreter:
    """A Python process, ready and waiting, that runs each piece of code in a fork of itself.

    Any number of threads may call `run` at once: a call has descriptors of its own, and only their hand-over, which is
    one atomic message, goes through the shared socket.

    Args:
        memory_mb: address space of one call.
        cpu_s: processor time of one call, in whole seconds.
    """

    def __init__(self, memory_mb: int, cpu_s: int) -> None:
        self._control, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="appo-python-")
        # A set of strings must print in the same order in every run: hence the hash seed, and hence not -I.
        flags = ["-P", "-s", "-S", "-X", "utf8"]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *flags, _WORKER, str(theirs.fileno()), str(memory_mb), str(cpu_s)],
                env={"PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=self._folder,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._control.settimeout(_START_S)
        if self._control.recv(1) != READY:
            self.stop()
            raise RuntimeError(f"the Python interpreter {sys.executable} ended while it started")

    def run(self, code: str, timeout_s: float, max_bytes: int) -> Execution:
        """Runs code in a process of its own; when this returns, that process and its descendants are dead.

        Raises:
            InterpreterLostError: if the interpreter had ended before.
        """
        deadline = time.monotonic() + timeout_s
        call, output = self._open_call()
        try:
            with call:
                execution = _follow(call, output, code, deadline, max_bytes)
            if execution.end in ("timeout", "cut") and not _closes(output, _KILL_S):
                self.kill()
        finally:
            os.close(output)
        return execution

    def _open_call(self) -> tuple[socket.socket, int]:
        call, theirs = socket.socketpair()
        output, their_output = os.pipe()
        try:
            socket.send_fds(self._control, [b"c"], [theirs.fileno(), their_output])
        except OSError as error:
            call.close()
            os.close(output)
            raise InterpreterLostError(_LOST) from error
        finally:
            theirs.close()
            os.close(their_output)
        return call, output

    def kill(self) -> None:
        """Ends the process at once; calls in flight are lost."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends the process and all calls, and removes their files."""
        # Not only closed: a process forked from this one may hold the same socket.
        try:
            self._control.shutdown(socket.SHUT_RDWR)
            self._process.wait(_KILL_S)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()
        self._control.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _follow(call: socket.socket, output: int, code: str, deadline: float, max_bytes: int) -> Execution:
    """Sends the code and collects what it prints until it ends, time is up, or there is too much of it."""
    call.settimeout(max(deadline - time.monotonic(), 1e-3))
    try:
        call.sendall(code.encode(errors="replace"))
        call.shutdown(socket.SHUT_WR)
    except TimeoutError:
        return Execution("", "timeout")
    except OSError as error:
        raise InterpreterLostError(_LOST) from error
    printed = bytearray()
    poller = select.poll()
    poller.register(call, select.POLLIN)
    poller.register(output, select.POLLIN)
    while len(printed) <= max_bytes:
        ready = dict(poller.poll(max(0.0, deadline - time.monotonic()) * 1e3))
        if not ready:
            return Execution(_decode(printed), "timeout")
        if call.fileno() in ready:
            return _finish(call, output, printed, max_bytes)
        chunk = os.read(output, _CHUNK_BYTES)
        printed += chunk
        if not chunk:
            poller.unregister(output)
    return Execution(_decode(printed), "cut")


def _finish(call: socket.socket, output: int, printed: bytearray, max_bytes: int) -> Execution:
    try:
        answer = call.recv(EXIT_CODE_BYTES)
    except ConnectionResetError as error:
        # The other end closed with our code unread.
        raise InterpreterLostError(_LOST) from error
    os.set_blocking(output, False)
    try:
        while len(printed) <= max_bytes and (chunk := os.read(output, _CHUNK_BYTES)):
            printed += chunk
    except BlockingIOError:
        pass
    if not answer:
        return Execution(_decode(printed), "lost")
    if len(printed) > max_bytes:
        return Execution(_decode(printed), "cut")
    return Execution(_decode(printed), "exit", int.from_bytes(answer, "big", signed=True))


def _decode(printed: bytearray) -> str:
    return printed.decode(errors="replace")


def _closes(output: int, wait_s: float) -> bool:
    """Whether every writer of a pipe is gone within a time; what they still write is thrown away."""
    deadline = time.monotonic() + wait_s
    poller = select.poll()
    poller.register(output, select.POLLIN)
    while poller.poll(max(0.0, deadline - time.monotonic()) * 1e3):
        if not os.read(output, _CHUNK_BYTES):
            return True
    return False

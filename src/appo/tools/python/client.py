"""The caller's side of the fork server in `appo.tools.python.sandbox`."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from appo.tools.base import ToolError
from appo.tools.python.sandbox.removal import remove_tree
from appo.tools.python.sandbox.settings import (
    ANSWER,
    CODE_LENGTH,
    NEW_CALL,
    NO_PROCESS,
    SIGN_OF_LIFE,
    Report,
    Settings,
)

_START_S = 60.0
"""Seconds that a new interpreter may take to become ready."""
_KILL_S = 2.0
"""Seconds that are waited for the end of a call or of an interpreter."""
_SIGN_S = 5.0
"""Seconds that an interpreter may take to give a sign of life; one that does not counts as hung."""
_CHUNK_BYTES = 2**16
_LOST = "The interpreter was killed."
_BOOT = """import sys
sys.path.insert(0, sys.stdin.readline()[:-1])
from sandbox.start import main
sys.path.pop(0)
main()"""
"""Starts the fork server as a package of its own: importing it by its full name would load the training code."""


class InterpreterLostError(ToolError):
    """The interpreter was gone before it read the code; a new one can run it."""


class NoWallError(RuntimeError):
    """The machine does not give the wall that code was to run behind."""


@dataclass(frozen=True)
class Execution:
    """What became of one call.

    Attributes:
        output: what it printed, up to the limit, undecodable bytes replaced.
        end: `exit` by itself or by a signal, `timeout`, `cut` because it printed too much, or `lost` with the
            interpreter.
        exit_code: minus the number of the signal if one ended it; None unless `end` is `exit`.
        is_alive: whether its process lives on and takes more code.
    """

    output: str
    end: Literal["exit", "timeout", "cut", "lost"]
    exit_code: int | None = None
    is_alive: bool = False


class Interpreter:
    """A Python process, ready and waiting, that runs each call in a fork of itself.

    Any number of threads may use it at once: a call has descriptors of its own, and only their hand-over, which is one
    atomic message, goes through the shared socket.

    Raises:
        NoWallError: if the machine does not give the wall that the settings ask for.
        RuntimeError: if it does not start.
        ValueError: if a module to preload cannot be imported.
    """

    def __init__(self, settings: Settings) -> None:
        self._control, theirs = socket.socketpair()
        self._folder = tempfile.mkdtemp(prefix="appo-python-")
        flags = ["-P", "-s", "-X", "utf8", *(() if settings.packages else ("-S",))]
        # A set of strings must print in the same order in every run: hence the hash seed, and hence not -I. Threads
        # of numerical libraries would take processors from training, and a server with threads cannot fork safely.
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        # Without packages the environment that holds them is none of the code's business.
        executable = sys.executable if settings.packages else os.path.realpath(sys.executable)
        with theirs:
            self._process = subprocess.Popen(
                [executable, *flags, "-c", _BOOT, str(theirs.fileno())],
                env={"PYTHONHASHSEED": "0", **threads},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                cwd=self._folder,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError), self._process.stdin as start:
                start.write(f"{Path(__file__).parent}\n{settings.dump()}\n".encode())
            self.report = self._read_report()
        except BaseException:
            self.stop()
            raise
        if settings.wall == "namespaces":
            # Nothing lies in it: the server has built a root of its own on it.
            os.rmdir(self._folder)

    def _read_report(self) -> Report:
        self._control.settimeout(_START_S)
        with self._control.makefile("rb") as stream:
            line = stream.readline()
        if not line:
            raise RuntimeError(f"the Python interpreter {sys.executable} ended while it started")
        report = Report.load(line)
        if report.no_wall is not None:
            raise NoWallError(report.no_wall)
        if report.no_module is not None:
            raise ValueError(f"preload must name modules that calls can import, got {report.no_module}")
        return report

    def open(self) -> Session:
        """Forks a process that takes code.

        Raises:
            InterpreterLostError: if the interpreter has ended.
        """
        call, theirs = socket.socketpair()
        output, their_output = os.pipe()
        try:
            socket.send_fds(self._control, [NEW_CALL], [theirs.fileno(), their_output])
        except OSError as error:
            call.close()
            os.close(output)
            raise InterpreterLostError(_LOST) from error
        finally:
            theirs.close()
            os.close(their_output)
        return Session(self, call, output)

    def gives_sign_of_life(self) -> bool:
        """Whether the process that forks still serves, however long calls take to die."""
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    socket.send_fds(self._control, [SIGN_OF_LIFE], [theirs.fileno()])
                ours.settimeout(_SIGN_S)
                return ours.recv(1) == b""
            except OSError:
                return False

    def kill(self) -> None:
        """Ends the process at once; calls in flight are lost."""
        # The process that forks may be a child of ours: asked to end, ours kills it and waits for it.
        self._process.terminate()
        try:
            self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
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
        remove_tree(self._folder)


class Session:
    """One process of an interpreter that runs code, once or, if it keeps its variables, again and again.

    Used by one thread at a time.
    """

    def __init__(self, interpreter: Interpreter, call: socket.socket, output: int) -> None:
        os.set_blocking(output, False)
        self._interpreter = interpreter
        self._call = call
        self._output = output

    def run(self, code: str, timeout_s: float, max_bytes: int) -> Execution:
        """Runs code; unless the execution is alive, the process and its descendants are dead when this returns.

        Raises:
            InterpreterLostError: if the process had ended before.
            ToolError: if the machine had none to give.
        """
        try:
            execution = self._follow(code, time.monotonic() + timeout_s, max_bytes)
        except BaseException:
            self.close()
            raise
        if not execution.is_alive:
            self.close()
        return execution

    def close(self) -> None:
        """Kills the process and its descendants, and waits until they are dead, or until that takes long.

        What a call does, such as to die slowly, says nothing about the interpreter: that one is asked itself.
        """
        if self._call.fileno() < 0:
            return
        with self._call:
            if not (self._hang_up() or self._interpreter.gives_sign_of_life()):
                self._interpreter.kill()
        os.close(self._output)

    def _hang_up(self) -> bool:
        """Whether the server, told to kill the process, has reaped it in time."""
        deadline = time.monotonic() + _KILL_S
        try:
            self._call.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0.0:
                self._call.settimeout(left_s)
                if not self._call.recv(_CHUNK_BYTES):
                    return True
        except TimeoutError:
            return False
        except OSError:
            # The other end is gone, perhaps with our code unread.
            return True
        return False

    def _follow(self, code: str, deadline: float, max_bytes: int) -> Execution:
        """Sends the code and collects what it prints until it ends, time is up, or there is too much of it."""
        data = code.encode(errors="replace")
        self._call.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            self._call.sendall(CODE_LENGTH.pack(len(data)) + data)
        except TimeoutError:
            return Execution("", "timeout")
        except OSError as error:
            self._receive()
            raise InterpreterLostError(_LOST) from error
        printed = bytearray()
        poller = select.poll()
        poller.register(self._call, select.POLLIN)
        poller.register(self._output, select.POLLIN)
        while len(printed) <= max_bytes:
            ready = dict(poller.poll(max(0.0, deadline - time.monotonic()) * 1e3))
            if not ready:
                return Execution(_decode(printed), "timeout")
            if self._call.fileno() in ready:
                return self._finish(printed, max_bytes)
            chunk = os.read(self._output, _CHUNK_BYTES)
            printed += chunk
            if not chunk:
                poller.unregister(self._output)
        return Execution(_decode(printed), "cut")

    def _finish(self, printed: bytearray, max_bytes: int) -> Execution:
        answer = self._receive()
        try:
            while len(printed) <= max_bytes and (chunk := os.read(self._output, _CHUNK_BYTES)):
                printed += chunk
        except BlockingIOError:
            pass
        # Code that keeps its variables shares a process with the other end and could write to it.
        if len(answer) < ANSWER.size:
            return Execution(_decode(printed), "lost")
        if len(printed) > max_bytes:
            return Execution(_decode(printed), "cut")
        is_alive, exit_code = ANSWER.unpack(answer)
        return Execution(_decode(printed), "exit", exit_code, is_alive)

    def _receive(self) -> bytes:
        try:
            answer = self._call.recv(ANSWER.size)
        except ConnectionResetError as error:
            # The other end closed with our code unread.
            raise InterpreterLostError(_LOST) from error
        if answer == NO_PROCESS:
            raise ToolError("The machine has no room for another process.")
        return answer


def _decode(printed: bytearray) -> str:
    return printed.decode(errors="replace")

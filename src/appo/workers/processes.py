"""Functions that run in processes of their own, each call within a time limit that holds whatever they do.

The process pools of the standard library and of packages start processes that import the main script again: a user's
script without ``if __name__ == "__main__"`` would train anew in each of them. These import the function alone, outlive
no caller, and one that the system kills while it is idle takes no other along. What they return comes as JSON, and is
never unpickled: they read what a policy wrote, and may have been taken over by it.
"""

from __future__ import annotations

import pickle
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from appo.core.foreign_json import parse_json
from appo.workers.process_main import READY, VALUE, receive, send

_MAIN = Path(__file__).with_name("process_main.py")
_START_S = 120.0
"""Seconds that a process may take to import what it runs."""
_MAX_ANSWER_BYTES = 2**26
"""What a call may return, as JSON."""
_MAX_WAIT_S = 1e6
"""Longest single wait; the operating system takes no infinite one."""


class ProcessError(RuntimeError):
    """A call in a process failed."""


class ProcessTimeoutError(ProcessError, TimeoutError):
    """A call in a process outlasted its limit, and the process was killed."""


class ProcessLostError(ProcessError):
    """The process ended in the middle of a call."""


class ProcessPool:
    """Processes that run one function; a call that takes too long is killed with its process, and another one starts.

    The function and its arguments must be picklable. Its value must be one number, a text, a list or a mapping of such,
    or a dataclass, which comes as a mapping of its fields; whatever else is a number comes as a float. Any number of
    threads may call at once; those that find no idle process wait for one.

    Args:
        target: ``package.module:function``, or ``/path/file.py:function`` for a file that imports nothing of a package.
        num_processes: how many there are.
        memory_mb: address space of each, in MiB.
    """

    def __init__(self, target: str, num_processes: int, memory_mb: int) -> None:
        self.target = target
        self.name = _name(target)
        self.num_processes = num_processes
        self.memory_mb = memory_mb
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._processes: set[_Process] = set()
        self._lock = threading.Lock()
        self._is_started = False

    def start(self) -> None:
        """Starts the processes and waits until they are ready; does nothing if they are started.

        Raises:
            ProcessError: if the function cannot be imported there.
        """
        if self._is_started:
            return
        self._idle = queue.SimpleQueue()
        self._is_started = True
        try:
            processes = [self._new_process() for _ in range(self.num_processes)]
            for process in processes:
                process.wait_until_ready()
                self._idle.put(process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kills the processes; calls in flight raise. Does nothing if they are not started."""
        with self._lock:
            self._is_started = False
            processes, self._processes = self._processes, set()
        for process in processes:
            process.kill()

    def call(self, timeout_s: float, *arguments: Any, **options: Any) -> Any:
        """What the function returns.

        Args:
            timeout_s: seconds that the call may take once a process has it.
            *arguments: of the function.
            **options: of the function.

        Raises:
            ProcessTimeoutError: if it took longer.
            ProcessLostError: if its process died, of too little memory for instance, or said what none would say.
            ProcessError: if the function raised, or the pool is not started.
        """
        message = pickle.dumps((arguments, options))
        if not self._is_started:
            raise ProcessError(f"the processes that run {self.name} must be started first")
        process = self._idle.get()
        try:
            return process.call(message, timeout_s)
        except (ProcessTimeoutError, ProcessLostError):
            process.kill()
            with self._lock:
                self._processes.discard(process)
            # It need not be ready yet: the next call waits for that.
            process = self._new_process()
            raise
        finally:
            # Even a dead one, once the pool is stopped: those that wait for it learn from it that it is.
            self._idle.put(process)

    def _new_process(self) -> _Process:
        process = _Process(self.target, self.memory_mb)
        with self._lock:
            if self._is_started:
                self._processes.add(process)
                return process
        process.kill()
        raise ProcessError(f"the processes that run {self.name} were stopped")


def _name(target: str) -> str:
    """What messages call a function: without the folder of its file."""
    return target.rpartition("/")[2]


class _Process:
    """One process; one thread at a time talks to it."""

    def __init__(self, target: str, memory_mb: int) -> None:
        self.name = _name(target)
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_MAIN), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._is_ready = False
        self._send(pickle.dumps((sys.path, target, memory_mb)))

    def wait_until_ready(self) -> None:
        """Returns once the function is imported.

        Raises:
            ProcessError: if it cannot be.
        """
        if not self._is_ready:
            try:
                state, text = self._receive(time.monotonic() + _START_S)
            except TimeoutError as error:
                raise ProcessLostError(f"the process that runs {self.name} was not ready in {_START_S:g} s") from error
            if state != READY:
                raise ProcessError(f"{self.name} cannot be imported:\n{text}")
            self._is_ready = True

    def call(self, message: bytes, timeout_s: float) -> Any:
        """Runs the function on pickled arguments."""
        self.wait_until_ready()
        deadline = time.monotonic() + timeout_s
        try:
            self._channel.settimeout(min(timeout_s, _MAX_WAIT_S))
            self._send(pickle.dumps((timeout_s, message)))
            state, value = self._receive(deadline)
        except TimeoutError as error:
            raise ProcessTimeoutError(f"{self.name} took longer than {timeout_s:.3g} s") from error
        if state != VALUE:
            raise ProcessError(f"{self.name} raised {value!s:.2000}")
        return value

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        # Not when it is killed: another thread may wait for an answer, and learns of the end by the socket.
        self._channel.close()

    def _send(self, message: bytes) -> None:
        try:
            send(self._channel, message)
        except TimeoutError:
            raise
        except OSError as error:
            raise ProcessLostError(f"the process that runs {self.name} is gone") from error

    def _receive(self, deadline: float) -> tuple[str, Any]:
        try:
            answer = receive(self._channel, _MAX_ANSWER_BYTES, deadline)
        except (EOFError, ConnectionError) as error:
            raise ProcessLostError(f"the process that runs {self.name} died") from error
        except ValueError as error:
            raise ProcessLostError(f"the process that runs {self.name} sent {error}") from error
        try:
            state, value = parse_json(answer)
        except (ValueError, TypeError) as error:
            raise ProcessLostError(f"the process that runs {self.name} sent no answer") from error
        return state, value

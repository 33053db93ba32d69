"""The warm interpreter that runs an agent's Python code: a script of its own that imports nothing of the package.

`appo.tools.interpreter` starts it and sends two descriptors a call: a socket that carries the code and takes the exit
code, and a pipe for what the code prints. A call runs in a fork, which costs no start-up and leaves no state; it is
killed with all its descendants when it ends or when the caller closes the socket. The interpreter ends when its own
caller is gone.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import gc
import os
import resource
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
import types
from typing import NoReturn

READY = b"r"
"""What the interpreter says once it takes calls."""
EXIT_CODE_BYTES = 4
"""Length of the signed big-endian number that a call is answered with: exit code, or minus the signal that ended it."""

_PRELOADED = (
    *(
        "bisect",
        "collections",
        "copy",
        "dataclasses",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "heapq",
        "itertools",
    ),
    *("json", "math", "operator", "random", "re", "statistics", "string", "time", "typing"),
)
"""Modules that agents often import; a fork finds them loaded."""
_MAX_OPEN_FILES = 64
_MAX_FILE_BYTES = 16 * 2**20
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IS_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None)


class Server:
    """Forks a process for every call and sees to its end.

    Args:
        control: where calls come from, two descriptors each.
        memory_mb: address space of one call.
        cpu_s: processor time of one call.
    """

    def __init__(self, control: socket.socket, memory_mb: int, cpu_s: int) -> None:
        self.control = control
        self.memory_mb = memory_mb
        self.cpu_s = cpu_s
        self.calls: dict[int, socket.socket] = {}
        self.poller = select.poll()
        self.wakeup, wakeup_end = socket.socketpair()
        self.wakeup.setblocking(False)
        wakeup_end.setblocking(False)
        signal.set_wakeup_fd(wakeup_end.detach(), warn_on_full_buffer=False)
        # Without a handler of its own, the end of a child would not write to the wake-up descriptor.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def serve(self) -> None:
        """Takes calls until the caller closes the control socket, then kills what still runs."""
        self.poller.register(self.control, select.POLLIN)
        self.poller.register(self.wakeup, select.POLLIN)
        self.control.sendall(READY)
        while True:
            for descriptor, _ in self.poller.poll():
                if descriptor == self.wakeup.fileno():
                    self._reap()
                elif descriptor != self.control.fileno():
                    self._cancel(descriptor)
                elif not self._accept():
                    self._kill_all()
                    return

    def _accept(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self.control, 1, 2)
        if not message:
            return False
        call_descriptor, output = descriptors
        call = socket.socket(fileno=call_descriptor)
        pid = os.fork()
        if pid == 0:
            _run_call(call, output, self.memory_mb, self.cpu_s)
        os.close(output)
        self.calls[pid] = call
        # Hanging up is reported even to those who ask for no event; the code is for the child to read.
        self.poller.register(call, 0)
        return True

    def _cancel(self, descriptor: int) -> None:
        for pid, call in self.calls.items():
            if call.fileno() == descriptor:
                self.poller.unregister(call)
                _kill(pid)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wakeup.recv(4096)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            # An orphan that a call left behind ends here too, and nobody waits for it.
            if call := self.calls.pop(pid, None):
                self._finish(pid, call, os.waitstatus_to_exitcode(status))

    def _finish(self, pid: int, call: socket.socket, exit_code: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        self._kill_orphans()
        _remove_folder(pid)
        with contextlib.suppress(KeyError):
            self.poller.unregister(call)
        with call, contextlib.suppress(OSError):
            call.send(exit_code.to_bytes(EXIT_CODE_BYTES, "big", signed=True), socket.MSG_DONTWAIT)

    def _kill_orphans(self) -> None:
        """Kills descendants of calls that left their process group: when their parent ends they become our children."""
        if _IS_LINUX:
            with open(f"/proc/self/task/{os.getpid()}/children") as children:
                for pid in map(int, children.read().split()):
                    if pid not in self.calls:
                        _kill(pid)

    def _kill_all(self) -> None:
        for pid in self.calls:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, 0)
                self.calls.pop(pid, None)
                self._kill_orphans()


def _kill(pid: int) -> None:
    # The process itself as well: it may not have founded its group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def _remove_folder(pid: int) -> None:
    try:
        os.rmdir(str(pid))
    except OSError:
        shutil.rmtree(str(pid), ignore_errors=True)


def _prctl(option: int, value: int) -> None:
    if _IS_LINUX:
        _LIBC.prctl(option, value, 0, 0, 0)


def _run_call(call: socket.socket, output: int, memory_mb: int, cpu_s: int) -> NoReturn:
    """Runs one call in a fresh fork and ends the process."""
    os.setpgid(0, 0)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with call.makefile("rb") as stream:
        code = stream.read().decode()
    # The descriptors of other calls and of the control socket: held open, they would hide the end of their owners.
    os.closerange(3, 2**16)
    os.mkdir(str(os.getpid()))
    os.chdir(str(os.getpid()))
    for limit, value in (
        (resource.RLIMIT_AS, memory_mb * 2**20),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        # Counts every process of the user, so none is the only number that means something; root is exempt.
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    exit_code = 1
    try:
        exit_code = run_code(code)
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
        sys.stdout.flush()
    finally:
        os._exit(exit_code)


def run_code(code: str) -> int:
    """Executes code as a notebook cell: the value of a last bare expression is printed unless it is None.

    Returns:
        The exit code; an exception is 1, and its last lines are printed.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    with _Report() as report:
        tree = ast.parse(code, "<python>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<python>", "exec"), vars(main))
        if isinstance(last, ast.Expr):
            sys.displayhook(eval(compile(ast.Expression(last.value), "<python>", "eval"), vars(main)))
    return report.exit_code


class _Report(contextlib.AbstractContextManager["_Report"]):
    """Prints the last lines of whatever ends a call, and turns it into an exit code."""

    exit_code = 0

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, SystemExit):
            if error.code is None or isinstance(error.code, int):
                self.exit_code = (error.code or 0) & 0xFF
            else:
                self.exit_code = 1
                sys.stderr.write(f"{error.code}\n")
        elif error is not None:
            self.exit_code = 1
            sys.stderr.writelines(traceback.format_exception_only(error))
        return True


def main() -> None:
    """Serves the control socket whose descriptor, and the limits of a call, stand on the command line."""
    descriptor, memory_mb, cpu_s = map(int, sys.argv[1:])
    os.environ.clear()
    sys.argv[1:] = []
    for name in _PRELOADED:
        __import__(name)
    for stream in (sys.stdout, sys.stderr):
        assert hasattr(stream, "reconfigure")
        # Whole lines, so that output and errors keep their order and a process that is killed has said what it printed.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    gc.freeze()
    Server(socket.socket(fileno=descriptor), memory_mb, cpu_s).serve()
    shutil.rmtree(os.getcwd(), ignore_errors=True)


if __name__ == "__main__":
    main()

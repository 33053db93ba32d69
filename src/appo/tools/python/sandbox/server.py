"""The fork server: takes calls, forks a process for each, and sees to its end.

A call is two descriptors: a socket that carries code and answers, and a pipe for what the code prints. A fork costs no
start-up and leaves no state. It is killed with all its descendants when it ends, or when the caller shuts the socket
down; the server ends when its own caller is gone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import sys
from typing import NoReturn

from . import namespaces
from .cell import serve_cells
from .limits import confine
from .linux import IS_LINUX, PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from .seccomp import make_filter
from .settings import ANSWER, NO_PROCESS, Report, Settings

_PRELOADED = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "random", "re", "statistics", "string", "time", "typing"),
)
"""Modules that agents often import; a fork finds them loaded."""
_CALL_DESCRIPTOR = 3
_HANG_UP = getattr(select, "POLLRDHUP", 0)


class Server:
    """Forks a process for every call and sees to its end.

    Args:
        control: where calls come from, two descriptors each.
        settings: of every call.
        own_processes: descriptor of the process namespace that the server is the first process of; unused without
            namespaces.
    """

    def __init__(self, control: socket.socket, settings: Settings, own_processes: int) -> None:
        self.control = control
        self.settings = settings
        self.filter = make_filter(may_signal=settings.namespaces) if IS_LINUX else None
        self.own_processes = own_processes
        self.calls: dict[int, socket.socket] = {}
        self.poller = select.poll()
        self.wakeup, wakeup_end = socket.socketpair()
        self.wakeup.setblocking(False)
        wakeup_end.setblocking(False)
        signal.set_wakeup_fd(wakeup_end.detach(), warn_on_full_buffer=False)
        # Without a handler of its own, the end of a child would not write to the wake-up descriptor.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if IS_LINUX:
            prctl(PR_SET_CHILD_SUBREAPER, 1)

    def serve(self) -> None:
        """Takes calls until the caller closes the control socket, then kills what still runs."""
        self.poller.register(self.control, select.POLLIN)
        self.poller.register(self.wakeup, select.POLLIN)
        self.control.sendall(Report(os.geteuid(), self.filter is not None).dump())
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
        try:
            pid = namespaces.fork_call(self.own_processes) if self.settings.namespaces else os.fork()
        except OSError:
            # This call fails alone: others go on.
            os.close(output)
            with call, contextlib.suppress(OSError):
                call.send(NO_PROCESS, socket.MSG_DONTWAIT)
            return True
        if pid == 0:
            self._run(call, output)
        os.close(output)
        self.calls[pid] = call
        # Only its end: the code is for the child to read.
        self.poller.register(call, _HANG_UP)
        return True

    def _run(self, call: socket.socket, output: int) -> NoReturn:
        """Runs one call in a fresh fork and ends the process."""
        exit_code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            # Not below: the first descriptors may be the very ones to move.
            os.dup2(os.dup(call.fileno()), _CALL_DESCRIPTOR)
            call.detach()
            # The other calls' descriptors and the control socket: held open, they would hide the end of their owners,
            # and a descriptor of a folder would lead out of the root.
            os.closerange(_CALL_DESCRIPTOR + 1, 2**16)
            confine(self.settings, self.filter)
            exit_code = serve_cells(socket.socket(fileno=_CALL_DESCRIPTOR), self.settings.keep_variables)
        except OSError as error:
            sys.stderr.write(f"The code could not be run: {error}\n")
        finally:
            os._exit(exit_code)

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
        if not self.settings.namespaces:
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            self._kill_orphans()
            shutil.rmtree(str(pid), ignore_errors=True)
        with contextlib.suppress(KeyError):
            self.poller.unregister(call)
        with call, contextlib.suppress(OSError):
            call.send(ANSWER.pack(False, exit_code), socket.MSG_DONTWAIT)

    def _kill_orphans(self) -> None:
        """Kills descendants of calls that left their process group: when their parent ends they become our children."""
        if IS_LINUX:
            with open(f"/proc/self/task/{os.getpid()}/children") as children:
                for pid in map(int, children.read().split()):
                    if pid not in self.calls:
                        _kill(pid)

    def _kill_all(self) -> None:
        for pid in self.calls:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                if not self.settings.namespaces:
                    self._kill_orphans()
                pid, _ = os.waitpid(-1, 0)
                self.calls.pop(pid, None)


def _kill(pid: int) -> None:
    # The process itself as well: it may not have founded its group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def _prepare(settings: Settings) -> None:
    """Loads what calls find loaded; the environment goes last, since packages read it when they are imported."""
    for name in (*_PRELOADED, *settings.preload):
        importlib.import_module(name)
    for name in [name for name in os.environ if not (settings.packages and name.endswith("_NUM_THREADS"))]:
        del os.environ[name]
    sys.argv[1:] = []
    for stream in (sys.stdout, sys.stderr):
        assert hasattr(stream, "reconfigure")
        # Whole lines, so that output and errors keep their order and a process that is killed has said what it printed.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    gc.freeze()


def _readable(settings: Settings) -> list[str]:
    """Where Python, and the packages if calls may import them, are found; parents before what lies in them."""
    paths = {sys.base_prefix, sys.base_exec_prefix}
    if settings.packages:
        paths |= {sys.prefix, sys.exec_prefix, *(path for path in sys.path if os.path.isdir(path))}
    return sorted({real for path in paths for real in (os.path.abspath(path), os.path.realpath(path))}, key=len)


def _enter_namespaces(control: socket.socket, settings: Settings) -> int:
    """Goes on as a child in namespaces; returns the descriptor of its process namespace. The parent waits for it."""
    proc = namespaces.enter_server(os.getcwd(), _readable(settings))
    pid = os.fork()
    if pid != 0:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
        control.close()
        os.waitpid(pid, 0)
        os._exit(0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    own_processes = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    os.close(proc)
    return own_processes


def _leave_root() -> None:
    """Becomes nobody, unless nobody could read the standard library or root may not change user: then all stays."""
    with contextlib.suppress(OSError):
        os.seteuid(namespaces.NOBODY)
        can_read = os.access(os.__file__, os.R_OK, effective_ids=True)
        os.seteuid(0)
        if can_read:
            os.chown(".", namespaces.NOBODY, namespaces.NOBODY)
            namespaces.become_nobody()


def main() -> None:
    """Serves the control socket; its descriptor and the settings stand on the command line."""
    control, settings = socket.socket(fileno=int(sys.argv[1])), Settings.load(sys.argv[2])
    folder, own_processes = os.getcwd(), -1
    if not settings.packages:
        sys.executable = os.path.realpath(sys.executable)
    if IS_LINUX:
        # When memory runs out, a call should go before the training process; only a preference, so it may fail.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    if settings.namespaces:
        try:
            own_processes = _enter_namespaces(control, settings)
        except OSError as error:
            control.sendall(Report(no_namespaces=error.strerror or str(error)).dump())
            return
    elif IS_LINUX and namespaces.is_root_of_machine():
        _leave_root()
    try:
        _prepare(settings)
    except ImportError as error:
        control.sendall(Report(no_module=str(error)).dump())
        return
    Server(control, settings, own_processes).serve()
    if not settings.namespaces:
        shutil.rmtree(folder, ignore_errors=True)

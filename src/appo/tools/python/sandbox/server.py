"""The fork server: takes calls, forks a process for each, and sees to its end.

A call is two descriptors: a socket that carries code and answers, and a pipe for what the code prints. A fork costs no
start-up and leaves no state. It is killed with all its descendants when it ends, or when the caller shuts the socket
down; the server ends when its own caller is gone.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from . import namespaces
from .cell import run_cells, run_once
from .keeper import Keeper
from .limits import confine
from .linux import IS_LINUX, PR_SET_CHILD_SUBREAPER, prctl
from .removal import remove_tree
from .seccomp import make_filter
from .settings import ANSWER, NO_PROCESS, SIGN_OF_LIFE, Report, Settings

_CALL_DESCRIPTOR = 3
_HANG_UP = getattr(select, "POLLRDHUP", 0)


@dataclass
class Call:
    """A call whose process runs, or whose remains are being removed.

    Attributes:
        socket: to the caller.
        folder: where it works; empty in namespaces, where that goes with the process.
        exit_code: once its process has ended.
        awaited: processes that must end before it is over.
    """

    socket: socket.socket
    folder: str
    exit_code: int = 0
    awaited: set[int] = field(default_factory=set)


class Server:
    """Forks a process for every call and sees to its end.

    Args:
        control: where calls come from, two descriptors each.
        settings: of every call.
        own_processes: descriptor of the process namespace that the server is the first process of; unused without
            namespaces.
        readable: files and folders that calls may read where Landlock is the wall.
        hidden: folders within them that calls may not.
    """

    def __init__(
        self,
        control: socket.socket,
        settings: Settings,
        own_processes: int,
        readable: Sequence[str],
        hidden: Sequence[str],
    ) -> None:
        self.control = control
        self.settings = settings
        self.filter = make_filter(own_world=settings.wall == "namespaces") if IS_LINUX else None
        self.own_processes = own_processes
        self.calls: dict[int, Call] = {}
        self.ending: list[Call] = []
        self.readable, self.hidden = readable, hidden
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
        if message == SIGN_OF_LIFE:
            os.close(descriptors[0])
            return True
        call_descriptor, output = descriptors
        call = socket.socket(fileno=call_descriptor)
        folder = ""
        try:
            if self.settings.wall == "namespaces":
                pid = namespaces.fork_call(self.own_processes)
            else:
                # No call can foresee the name and take it.
                folder = tempfile.mkdtemp(dir=".")
                pid = os.fork()
        except OSError:
            # This call fails alone: others go on.
            os.close(output)
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            with call, contextlib.suppress(OSError):
                call.send(NO_PROCESS, socket.MSG_DONTWAIT)
            return True
        if pid == 0:
            self._run(call, output, folder)
        os.close(output)
        self.calls[pid] = Call(call, folder)
        # Only its end: the code is for the child to read.
        self.poller.register(call, _HANG_UP)
        return True

    def _run(self, call: socket.socket, output: int, folder: str) -> NoReturn:
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
            os.setpgid(0, 0)
            call = socket.socket(fileno=_CALL_DESCRIPTOR)
            if self.settings.keep_variables:
                call = self._fork_cells(call)
            confine(self.settings, self.filter, folder, self.readable, self.hidden)
            if self.settings.keep_variables:
                run_cells(call)
                exit_code = 0
            else:
                exit_code = run_once(call)
        except OSError as error:
            sys.stderr.write(f"The code could not be run: {error}\n")
        finally:
            os._exit(exit_code)

    def _fork_cells(self, call: socket.socket) -> socket.socket:
        """Goes on as a child that runs cells; the process itself stays between it and the caller."""
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child != 0:
            theirs.close()
            # Held open, it would hide that the child has closed it.
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
            Keeper(call, ours, child, self.settings.wall == "namespaces").serve()
        ours.close()
        call.close()
        return theirs

    def _cancel(self, descriptor: int) -> None:
        for pid, call in self.calls.items():
            if call.socket.fileno() == descriptor:
                self.poller.unregister(call.socket)
                _kill(pid)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wakeup.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                # An orphan that a call left behind ends here too.
                self._end(*ended)

    def _end(self, pid: int, status: int) -> None:
        """Takes note of the end of a process, and of the calls that waited for it."""
        if call := self.calls.pop(pid, None):
            with contextlib.suppress(KeyError):
                self.poller.unregister(call.socket)
            call.exit_code = os.waitstatus_to_exitcode(status)
            if call.folder:
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                call.awaited = self._kill_orphans()
            self.ending.append(call)
        for call in self.ending:
            call.awaited.discard(pid)
            if not call.awaited and call.folder:
                self._remove_folder(call)
        for call in [call for call in self.ending if not call.awaited]:
            self.ending.remove(call)
            with call.socket, contextlib.suppress(OSError):
                call.socket.send(ANSWER.pack(False, call.exit_code), socket.MSG_DONTWAIT)

    def _kill_orphans(self) -> set[int]:
        """Kills descendants of calls whose parent has ended: they have become our children. Returns which."""
        orphans: set[int] = set()
        if IS_LINUX:
            removing = set().union(*(call.awaited for call in self.ending))
            with open(f"/proc/self/task/{os.getpid()}/children") as children:
                orphans = {*map(int, children.read().split())} - {*self.calls} - removing
            for pid in orphans:
                _kill(pid)
        return orphans

    def _remove_folder(self, call: Call) -> None:
        """Removes the folder of a call; a full one in a process of its own, since that may take any time."""
        folder, call.folder = call.folder, ""
        with contextlib.suppress(OSError):
            os.rmdir(folder)
            return
        with contextlib.suppress(OSError):
            pid = os.fork()
            if pid == 0:
                try:
                    remove_tree(folder)
                finally:
                    os._exit(0)
            call.awaited.add(pid)

    def _kill_all(self) -> None:
        for pid in self.calls:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                if self.settings.wall != "namespaces":
                    self._kill_orphans()
                self.calls.pop(os.waitpid(-1, 0)[0], None)


def _kill(pid: int) -> None:
    # The process itself as well: it may not have founded its group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)

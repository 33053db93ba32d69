"""Stands between the caller and a process that keeps its variables, which may say of itself what it likes."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress
from typing import NoReturn

from .cell import receive_code
from .settings import ANSWER, CELL_END, CODE_LENGTH


class Keeper:
    """Hands code on to a child, and says of it only what it has seen itself.

    A cell has ended when the child is dead or stands still: when the child says that a cell has ended, everything in
    its namespace is stopped, and goes on with the next one. Code that says so too early has stopped itself.

    Args:
        call: to the caller, who sends code and is told how it ended.
        cells: to the child.
        child: its process, the only one besides this in a namespace unless it forked.
        is_first: whether this is the first process of a namespace of its own, so that signals reach just the child and
            what came from it.
    """

    def __init__(self, call: socket.socket, cells: socket.socket, child: int, is_first: bool) -> None:
        self.call = call
        self.cells = cells
        self.child = child
        self.everyone = -1 if is_first else child
        self.wakeup, wakeup_end = socket.socketpair()
        for end in (self.wakeup, wakeup_end):
            end.setblocking(False)
        signal.set_wakeup_fd(wakeup_end.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # Of a first process none but those with a handler reach it from within.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def serve(self) -> NoReturn:
        """Hands on code until the caller has no more or the child is dead, and ends the process."""
        with suppress(OSError):
            while True:
                self._wait_for(self.call)
                code = receive_code(self.call)
                if code is None:
                    break
                self._forget_what_was_said()
                self._signal(signal.SIGCONT)
                self.cells.sendall(CODE_LENGTH.pack(len(code)) + code)
                self._wait_for(self.cells)
                (exit_code,) = CELL_END.unpack(self.cells.recv(CELL_END.size) or b"\1")
                self._signal(signal.SIGSTOP)
                _, status = os.waitpid(self.child, os.WUNTRACED)
                self._end_with(status)
                self.call.sendall(ANSWER.pack(True, exit_code))
        os._exit(0)

    def _wait_for(self, source: socket.socket) -> None:
        """Returns when a socket can be read; ends the process if the child dies before."""
        poller = select.poll()
        poller.register(source, select.POLLIN)
        poller.register(self.wakeup, select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self.wakeup.fileno() in ready:
                with suppress(BlockingIOError):
                    self.wakeup.recv(4096)
                with suppress(ChildProcessError):
                    while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
                        if ended[0] == self.child:
                            self._end_with(ended[1])
            elif source.fileno() in ready:
                return

    def _forget_what_was_said(self) -> None:
        with suppress(BlockingIOError):
            while self.cells.recv(4096, socket.MSG_DONTWAIT):
                pass

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.everyone, number)

    def _end_with(self, status: int) -> None:
        """Ends the process if the child has ended, and not only stopped; says how."""
        if os.WIFSTOPPED(status):
            return
        self._signal(signal.SIGKILL)
        self.call.sendall(ANSWER.pack(False, os.waitstatus_to_exitcode(status)))
        os._exit(0)

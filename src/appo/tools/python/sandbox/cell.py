"""Runs code as a notebook cell."""

from __future__ import annotations

import ast
import contextlib
import socket
import sys
import threading
import traceback
import types

from .settings import CELL_END, CODE_LENGTH

_PART_BYTES = 2**20


class Notebook:
    """Cells that share their variables, in a module of their own that is the process's ``__main__``."""

    def __init__(self) -> None:
        self.main = types.ModuleType("__main__")
        sys.modules["__main__"] = self.main

    def run(self, code: str) -> int:
        """Executes a cell: the value of a last bare expression is printed unless it is None.

        Returns:
            The exit code; an exception is 1, and its last lines are printed.
        """
        with _Report() as report:
            tree = ast.parse(code, "<python>")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<python>", "exec"), vars(self.main))
            if isinstance(last, ast.Expr):
                sys.displayhook(eval(compile(ast.Expression(last.value), "<python>", "eval"), vars(self.main)))
        return report.exit_code


def run_once(call: socket.socket) -> int:
    """Runs the code that comes, which finds the socket closed; returns the exit code."""
    code = receive_code(call)
    call.close()
    if code is None:
        return 0
    exit_code = Notebook().run(code.decode())
    _join_threads()
    sys.stdout.flush()
    return exit_code


def run_cells(cells: socket.socket) -> None:
    """Runs the code that comes, cell after cell, until there is no more.

    Code can write to the socket as well; whoever reads what it says can trust it no further than to stop the process.
    """
    notebook = Notebook()
    while (code := receive_code(cells)) is not None:
        exit_code = notebook.run(code.decode())
        sys.stdout.flush()
        cells.sendall(CELL_END.pack(exit_code & 0xFF))


def receive_code(stream: socket.socket) -> bytes | None:
    """The code that comes next, in UTF-8; None if no more comes."""
    header = _receive(stream, CODE_LENGTH.size)
    return None if header is None else _receive(stream, *CODE_LENGTH.unpack(header))


def _receive(stream: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = stream.recv(min(size - len(data), _PART_BYTES))
        if not part:
            return None
        data += part
    return bytes(data)


def _join_threads() -> None:
    """Waits for the threads that a program waits for at its end."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


class _Report(contextlib.AbstractContextManager["_Report"]):
    """Prints the last lines of whatever ends a cell, and turns it into an exit code."""

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

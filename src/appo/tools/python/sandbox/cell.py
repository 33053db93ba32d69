"""Runs code as a notebook cell."""

from __future__ import annotations

import ast
import contextlib
import socket
import sys
import threading
import traceback
import types

from .settings import ANSWER, CODE_LENGTH


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


def serve_cells(call: socket.socket, keep_variables: bool) -> int:
    """Runs the code that comes: one cell, or cells until the caller has no more; returns the last exit code."""
    notebook = Notebook()
    stream = call.makefile("rb")
    while True:
        header = stream.read(CODE_LENGTH.size)
        if len(header) < CODE_LENGTH.size:
            return 0
        code = stream.read(*CODE_LENGTH.unpack(header)).decode()
        if not keep_variables:
            stream.close()
            call.close()
        exit_code = notebook.run(code)
        if not keep_variables:
            _join_threads()
        sys.stdout.flush()
        if not keep_variables:
            return exit_code
        call.sendall(ANSWER.pack(True, exit_code))


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

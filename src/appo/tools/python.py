"""Runs the agent's Python code outside the training process."""

from __future__ import annotations

import math
import signal
import threading
from dataclasses import dataclass, field

from appo.tools.base import TOOLS, Tool, ToolError, ToolTimeoutError, shorten
from appo.tools.interpreter import Execution, Interpreter, InterpreterLostError


@TOOLS.register
@dataclass(eq=False)
class PythonTool(Tool):
    """Runs Python code as a notebook cell: what it prints, and the value of a last bare expression, is the result.

    Every call has a process of its own with the standard library, an empty environment, an empty working folder and no
    memory of earlier calls. Its limits keep a mistake of the model from harming the run; they are no wall against code
    that means to: it runs as the same user, and may use the network.
    """

    timeout_s: float = 5.0
    """Seconds after which a call is killed."""
    memory_mb: int = 512
    """Address space of a call in MiB."""
    max_output_chars: int = 2000
    """Characters of the result; a call that prints more is killed, and its result cut."""

    _interpreter: Interpreter | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout_s must be positive and finite, got {self.timeout_s}")
        if self.memory_mb < 64:
            raise ValueError(
                f"memory_mb must be at least 64, which an interpreter needs for itself, got {self.memory_mb}"
            )
        if self.max_output_chars < 1:
            raise ValueError(f"max_output_chars must be positive, got {self.max_output_chars}")

    @property
    def name(self) -> str:
        return "python"

    def start(self) -> None:
        with self._lock:
            if self._interpreter is None:
                self._interpreter = self._new_interpreter()

    def stop(self) -> None:
        with self._lock:
            if self._interpreter is not None:
                self._interpreter.stop()
                self._interpreter = None

    def __call__(self, argument: str) -> str:
        interpreter = self._interpreter
        if interpreter is None:
            raise RuntimeError("PythonTool must be started before it is called")
        # A character of UTF-8 has at most four bytes.
        max_bytes = 4 * self.max_output_chars
        try:
            execution = interpreter.run(argument, self.timeout_s, max_bytes)
        except InterpreterLostError:
            execution = self._replace(interpreter).run(argument, self.timeout_s, max_bytes)
        return self._to_result(execution)

    def _new_interpreter(self) -> Interpreter:
        # Wall time decides; processor time only bounds what would survive its killing.
        return Interpreter(self.memory_mb, cpu_s=math.ceil(self.timeout_s) + 1)

    def _replace(self, lost: Interpreter) -> Interpreter:
        """The interpreter to use instead of one that is gone; of the threads that saw it go, the first starts it."""
        with self._lock:
            if self._interpreter is None:
                raise ToolError("The interpreter was stopped.")
            if self._interpreter is lost:
                lost.stop()
                self._interpreter = self._new_interpreter()
            return self._interpreter

    def _to_result(self, execution: Execution) -> str:
        output = shorten(execution.output.strip("\n"), self.max_output_chars)
        if execution.end == "timeout":
            raise ToolTimeoutError(f"{output}\nTimed out after {self.timeout_s:g} seconds.".lstrip())
        if execution.end == "lost":
            raise ToolError("The interpreter was killed while the code ran.")
        code = execution.exit_code or 0
        if code < 0:
            raise ToolError(f"{output}\nKilled by signal {-code} ({signal.strsignal(-code)}).".lstrip())
        # An exception has said what it is.
        if code > 1 or (code == 1 and not output):
            raise ToolError(f"{output}\nExit code {code}.".lstrip())
        if code == 1:
            raise ToolError(output)
        return output or "(no output)"

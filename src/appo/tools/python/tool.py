"""Runs the agent's Python code outside the training process."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from appo.core.trajectory import ToolCall
from appo.tools.base import TOOLS, Tool, ToolError, ToolTimeoutError, shorten
from appo.tools.python.client import Execution, Interpreter, InterpreterLostError, NoWallError, Session
from appo.tools.python.sandbox.settings import Settings, Wall
from appo.tools.python.sessions import Codes, Sessions, codes_of

logger = logging.getLogger(__name__)


@TOOLS.register
@dataclass(eq=False)
class PythonTool(Tool):
    """Runs Python code as a notebook cell: what it prints, and the value of a last bare expression, is the result.

    Every call has a process of its own, forked from an interpreter that waits, with an empty environment and an empty
    working folder. It reaches no other process, no network, no file but those of Python and the system, and can write
    nowhere else: by namespaces, or by Landlock where the machine gives none. `docs/security.md` says what each keeps.
    """

    parameter_name = "code"

    timeout_s: float = 5.0
    """Seconds after which a call is killed."""
    memory_mb: int = 512
    """Address space of each process of a call, MiB."""
    disk_mb: int = 16
    """Files that a call may hold in its working folder, MiB; they take memory."""
    max_processes: int = 8
    """Processes and threads that a call may have at once; without namespaces it has one."""
    max_open_files: int = 64
    """Descriptors that a process may have open."""
    max_output_chars: int = 2000
    """Characters of the result; a call that prints more is killed, and its result cut."""
    packages: bool = False
    """Whether installed packages can be imported and read; the standard library always can."""
    preload: Sequence[str] = ()
    """Modules to import ahead of the calls, which then find them loaded."""
    keep_variables: bool = False
    """Whether a call finds the variables that earlier calls of its trajectory left, or starts anew."""
    max_sessions: int = 64
    """Processes that wait with a trajectory's variables; the variables of others are made again by running their code
    again."""
    require_isolation: bool = True
    """Whether to refuse to start on a machine that gives neither namespaces nor Landlock. False gives away what they
    keep: there, code reads and writes the files, and perhaps the memory, of whoever trains, keys and answers among
    them."""

    _interpreter: Interpreter | None = field(default=None, init=False, repr=False)
    _settings: Settings = field(init=False, repr=False)
    _sessions: Sessions = field(init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout_s must be positive and finite, got {self.timeout_s}")
        if self.memory_mb < 64:
            raise ValueError(
                f"memory_mb must be at least 64, which an interpreter needs for itself, got {self.memory_mb}"
            )
        if self.max_open_files < 16:
            raise ValueError(
                f"max_open_files must be at least 16, which an interpreter needs for itself, got {self.max_open_files}"
            )
        for option in ("disk_mb", "max_processes", "max_output_chars", "max_sessions"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} must be positive, got {getattr(self, option)}")
        if isinstance(self.preload, str):
            raise ValueError(f"preload must be a list of modules, got {self.preload!r}")
        self._sessions = Sessions(self.max_sessions)

    @property
    def name(self) -> str:
        return "python"

    def start(self) -> None:
        """Starts the interpreter and logs which isolation is in force.

        Raises:
            ValueError: if `require_isolation` is set and the machine offers no isolation, or a module to preload cannot
                be imported.
        """
        with self._lock:
            if self._interpreter is not None:
                return
            # Wall time decides; processor time only bounds what would survive its killing. A process that stays has
            # the time of many calls.
            num_calls = 100 if self.keep_variables else 1
            settings = Settings(
                self.memory_mb,
                num_calls * math.ceil(self.timeout_s) + 1,
                self.disk_mb,
                self.max_processes,
                self.max_open_files,
                self.packages,
                tuple(self.preload),
                self.keep_variables,
                wall="namespaces",
            )
            self._interpreter, self._settings = self._start_behind_a_wall(settings)
            logger.info("python tool: isolated by %s", self.isolation)

    def _start_behind_a_wall(self, settings: Settings) -> tuple[Interpreter, Settings]:
        """Starts an interpreter behind the strongest wall that there is."""
        walls: tuple[Wall, ...] = ("namespaces", "landlock")
        reasons = []
        for wall in walls:
            settings = replace(settings, wall=wall)
            try:
                return Interpreter(settings), settings
            except NoWallError as error:
                reasons.append(f"{wall}: {error}")
        if self.require_isolation:
            raise ValueError(
                "require_isolation must be false on a machine that cannot keep code from it, got true "
                f"({'; '.join(reasons)}); allow namespaces to users, or take Linux 6.2 or newer with Landlock "
                "(docs/security.md says how); false lets code read and write what the training process can"
            )
        logger.warning("python tool: nothing keeps code from this machine (%s)", "; ".join(reasons))
        settings = replace(settings, wall="limits")
        return Interpreter(settings), settings

    def stop(self) -> None:
        with self._lock:
            if self._interpreter is not None:
                self._sessions.clear()
                self._interpreter.stop()
                self._interpreter = None

    @property
    def isolation(self) -> str:
        """What keeps code from the machine, in words; the tool must be started."""
        if self._interpreter is None:
            raise RuntimeError("PythonTool must be started before its isolation is known")
        report = self._interpreter.report
        if self._settings.wall == "namespaces":
            calls = "allowed system calls alone" if report.has_filter else "all system calls"
            return f"namespaces (user, mount, process, network, IPC), read-only system files, {calls}, limits"
        if self._settings.wall == "landlock":
            return "Landlock, read-only system files, allowed system calls alone, limits, one process a call"
        calls = "allowed system calls alone" if report.has_filter else "all system calls"
        return f"limits alone: files and processes as user {report.user_id} has them, {calls}"

    def __call__(self, argument: str) -> str:
        return self.call_after((), argument)

    def call_after(self, earlier: Sequence[ToolCall], argument: str, trajectory: object = None) -> str:
        interpreter = self._interpreter
        if interpreter is None:
            raise RuntimeError("PythonTool must be started before it is called")
        codes = codes_of(earlier) if self.keep_variables else ()
        deadline = time.monotonic() + self.timeout_s
        try:
            execution = self._run(interpreter, trajectory, codes, argument, deadline)
        except InterpreterLostError:
            execution = self._run(self._replace(interpreter), trajectory, codes, argument, deadline)
        return self._to_result(execution)

    def _run(self, interpreter: Interpreter, trajectory: object, codes: Codes, code: str, deadline: float) -> Execution:
        while session := self._sessions.pop(trajectory, codes) if codes else None:
            # One that died while it waited says nothing about the interpreter: another may wait, or is made.
            with suppress(InterpreterLostError):
                return self._run_in(session, trajectory, codes, code, deadline)
        return self._run_in(self._repeat(interpreter, codes, deadline), trajectory, codes, code, deadline)

    def _run_in(self, session: Session, trajectory: object, codes: Codes, code: str, deadline: float) -> Execution:
        execution = self._execute(session, code, deadline)
        if execution.is_alive and trajectory is not None:
            self._sessions.put(trajectory, (*codes, code), session)
        else:
            # Of a trajectory that is not known, no later call would be.
            session.close()
        return execution

    def _repeat(self, interpreter: Interpreter, codes: Codes, deadline: float) -> Session:
        """A new process that has run these codes; one that died of a code is followed by another, as it was before."""
        session = interpreter.open()
        for code in codes:
            execution = self._execute(session, code, deadline)
            if execution.end == "timeout":
                raise ToolTimeoutError(f"Timed out after {self.timeout_s:g} seconds while earlier calls were repeated.")
            if not execution.is_alive:
                session = interpreter.open()
        return session

    def _execute(self, session: Session, code: str, deadline: float) -> Execution:
        # A character of UTF-8 has at most four bytes.
        return session.run(code, deadline - time.monotonic(), 4 * self.max_output_chars)

    def _replace(self, lost: Interpreter) -> Interpreter:
        """The interpreter to use instead of one that is gone; of the threads that saw it go, the first starts it."""
        with self._lock:
            if self._interpreter is None:
                raise ToolError("The interpreter was stopped.")
            if self._interpreter is lost:
                self._sessions.clear()
                lost.stop()
                self._interpreter = Interpreter(self._settings)
            return self._interpreter

    def _to_result(self, execution: Execution) -> str:
        output = shorten(execution.output.strip("\n"), self.max_output_chars)
        if execution.end == "timeout":
            raise ToolTimeoutError(f"{output}\nTimed out after {self.timeout_s:g} seconds.".lstrip())
        if execution.end == "lost":
            raise ToolError("The interpreter was killed while the code ran.")
        code = execution.exit_code or 0
        if code < 0:
            name = signal.strsignal(-code)
            raise ToolError(f"{output}\nKilled by signal {-code} ({name}).".lstrip())
        # An exception has said what it is.
        if code > 1 or (code == 1 and not output):
            raise ToolError(f"{output}\nExit code {code}.".lstrip())
        if code == 1:
            raise ToolError(output)
        return output or "(no output)"

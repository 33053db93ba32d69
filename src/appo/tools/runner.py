"""Runs tool calls beside the thread that generates."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from appo.core.trajectory import ToolCall
from appo.tools.base import Failure, Tool, ToolError, ToolProvider, shorten
from appo.tools.function import as_tool
from appo.workers.retries import BackOff, StoppedError, retrying
from appo.workers.threads import GivenUpError, ThreadPool

logger = logging.getLogger(__name__)

GRACE_S = 0.5
"""Seconds beyond a tool's limit: a tool that enforces the limit itself knows better what to say, and cleans up."""
_STOP_S = 2.0
"""Seconds that calls in flight get to end when the runner stops."""


@dataclass(frozen=True)
class ToolAnswer:
    """What a call came to.

    Attributes:
        key: of the call, as submitted.
        text: what the model reads.
        failure: None if the tool answered.
        duration_s: seconds between submission and answer.
    """

    key: int
    text: str
    failure: Failure | None
    duration_s: float


@dataclass(frozen=True)
class _Call:
    key: int
    tool: str
    argument: str | Mapping[str, Any]
    earlier: Sequence[ToolCall]
    trajectory: object
    submitted_at: float


class ToolRunner:
    """Runs calls in threads and hands their answers to the one thread that submits and collects.

    Nothing that a tool does reaches that thread as an exception. A call is given up when it outlasts its tool's
    `timeout_s`, counted from the moment it begins to run.

    Args:
        tools: what may be called: tools, what offers tools once it is started, and plain functions; the runner starts
            and stops them.
        max_parallel: calls that run at once; more wait for their turn.
        max_result_chars: characters of an answer; a longer one is cut, with a note.
        attempts: at a call whose tool raises what it does not mean the model to read, such as an error of the network;
            a `ToolError` is an answer, and so is an empty text.
        retry_wait_s: longest pause before the second attempt, twice as long before each further one; pauses are
            shortened by up to a half at random. All attempts together have the tool's `timeout_s`.

    Raises:
        ValueError: if two tools have one name, or a limit is not positive.
    """

    def __init__(
        self,
        tools: Sequence[ToolProvider | Callable[..., Any]],
        max_parallel: int = 32,
        max_result_chars: int = 10_000,
        attempts: int = 1,
        retry_wait_s: float = 0.5,
    ) -> None:
        for option, value in (
            ("max_parallel", max_parallel),
            ("max_result_chars", max_result_chars),
            ("attempts", attempts),
        ):
            if value < 1:
                raise ValueError(f"{option} must be positive, got {value}")
        if not 0.0 <= retry_wait_s < math.inf:
            raise ValueError(f"retry_wait_s must be finite and not negative, got {retry_wait_s}")
        self.providers = tuple(map(as_tool, tools))
        self.tools = _by_name(self.providers)
        self.max_parallel = max_parallel
        self.max_result_chars = max_result_chars
        self.attempts = attempts
        self._back_off = BackOff(retry_wait_s)
        self._stopping = threading.Event()
        self._pool: ThreadPool[ToolAnswer] | None = None
        self._calls: dict[int, _Call] = {}
        self._logged: set[tuple[str, type[Exception]]] = set()

    def start(self) -> None:
        """Starts the tools, then the threads; does nothing if the runner is started.

        Raises:
            Exception: whatever starting a tool raises; those started before it are stopped again.
            ValueError: if two tools have one name.
        """
        if self._pool is not None:
            return
        with ExitStack() as started:
            for provider in self.providers:
                started.callback(provider.stop)
                provider.start()
            self.tools = _by_name(self.providers)
            started.pop_all()
        self._stopping.clear()
        self._pool = ThreadPool(self.max_parallel, "appo-tool")

    def stop(self) -> None:
        """Drops what is in flight and stops threads and tools; does nothing if the runner is not started."""
        if self._pool is None:
            return
        pool, self._pool = self._pool, None
        self._calls.clear()
        self._stopping.set()
        pool.close()
        for provider in self.providers:
            provider.stop()
        pool.join(_STOP_S)

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as a chat template takes them (``tools=``), in their order.

        Raises:
            RuntimeError: if the runner is not started: only then does it know all tools.
        """
        if self._pool is None:
            raise RuntimeError("the tool runner must be started before it knows its tools")
        return [tool.schema for tool in self.tools.values()]

    @property
    def num_in_flight(self) -> int:
        """Calls submitted and not yet returned."""
        return len(self._calls)

    def submit(
        self,
        key: int,
        tool: str,
        argument: str | Mapping[str, Any],
        earlier: Sequence[ToolCall] = (),
        trajectory: object = None,
    ) -> None:
        """Queues a call.

        Args:
            key: chosen by the caller, unique among the calls in flight.
            tool: name of the tool; an unknown one is answered with those that are known.
            argument: what the model passed: the text that the tool takes, or arguments by name.
            earlier: calls of the same trajectory to the same tool, oldest first.
            trajectory: whose call it is, as in `Tool.call_after`.

        Raises:
            RuntimeError: if the runner is not started.
            ValueError: if a call with that key is in flight.
        """
        if self._pool is None:
            raise RuntimeError("the tool runner must be started before calls are submitted")
        call = _Call(key, tool, argument, earlier, trajectory, time.monotonic())
        timeout_s = self.tools[tool].timeout_s + GRACE_S if tool in self.tools else math.inf
        self._pool.submit(key, partial(self._run, call), timeout_s)
        self._calls[key] = call

    def finished(self, wait_s: float | None = 0.0) -> list[ToolAnswer]:
        """Returns the calls that ended since the last time, each once.

        Args:
            wait_s: seconds to wait for the first one; 0 does not wait, None waits as long as any is in flight.
        """
        answers: list[ToolAnswer] = []
        for key, result in self._pool.finished(wait_s).items() if self._pool is not None else ():
            call = self._calls.pop(key)
            answers.append(self._unanswered(call, result) if isinstance(result, BaseException) else result)
        return answers

    def _unanswered(self, call: _Call, error: BaseException) -> ToolAnswer:
        """The answer to a call that was given up, or that ended its thread."""
        duration_s = time.monotonic() - call.submitted_at
        if isinstance(error, GivenUpError):
            text = f"Timed out after {self.tools[call.tool].timeout_s:g} seconds."
            return ToolAnswer(call.key, text, "timeout", duration_s)
        return ToolAnswer(call.key, f"Error: {type(error).__name__}: {error}", "error", duration_s)

    def _run(self, call: _Call) -> ToolAnswer:
        text, failure = self._answer(call)
        # Half of a surrogate pair is no text: neither a tokenizer nor a file takes it.
        text = shorten(text.encode(errors="replace").decode(), self.max_result_chars)
        return ToolAnswer(call.key, text, failure, time.monotonic() - call.submitted_at)

    def _answer(self, call: _Call) -> tuple[str, Failure | None]:
        tool = self.tools.get(call.tool)
        if tool is None:
            return f"Error: no tool is named {call.tool!r}; there are: {', '.join(self.tools)}", "unknown"
        try:
            argument = call.argument if isinstance(call.argument, str) else tool.to_text(call.argument)
            return self._try(tool, argument, call), None
        except ToolError as error:
            return str(error), error.failure
        except StoppedError:
            return "The tools were stopped.", "unavailable"
        except Exception as error:
            # The run goes on, and the model reads what went wrong; people are told once of each kind.
            if (kind := (call.tool, type(error))) not in self._logged:
                self._logged.add(kind)
                logger.warning("tool %r failed; further errors of this kind are only counted", call.tool, exc_info=True)
            return f"Error: {type(error).__name__}: {error}", "error"

    def _try(self, tool: Tool, argument: str, call: _Call) -> str:
        """Calls the tool, again if it raises what is no answer, as often as attempts and time allow."""
        attempts = retrying(
            self._back_off,
            self.attempts,
            tool.timeout_s,
            self._stopping,
            may_pass=lambda error: isinstance(error, Exception) and not isinstance(error, ToolError),
        )
        return _checked(attempts(tool.call_after, call.earlier, argument, call.trajectory))


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"the tool must answer with text, got {type(text).__name__}")
    return text


def _by_name(providers: Iterable[ToolProvider]) -> dict[str, Tool]:
    tools = [tool for provider in providers for tool in provider.tools]
    names = [tool.name for tool in tools]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tools must have different names, got {', '.join(map(repr, repeated))} more than once")
    return dict(zip(names, tools, strict=True))

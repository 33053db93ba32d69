"""Runs tool calls beside the thread that generates."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from appo.core.trajectory import ToolCall
from appo.tools.base import Failure, Tool, ToolError, ToolProvider, shorten

logger = logging.getLogger(__name__)

GRACE_S = 0.5
"""Seconds beyond a tool's limit: a tool that enforces the limit itself knows better what to say, and cleans up."""
_MAX_WAIT_S = 60.0
"""Longest single wait; lock primitives take no infinite one."""
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


@dataclass(eq=False)
class _Call:
    key: int
    tool: str
    argument: str | Mapping[str, Any]
    earlier: Sequence[ToolCall]
    submitted_at: float
    deadline: float = math.inf
    """When it is given up; known once it runs."""


@dataclass(eq=False)
class _Worker:
    """A thread that runs calls; left behind while it hangs in one, it ends as soon as that returns."""

    todo: SimpleQueue[_Call | None]
    done: SimpleQueue[tuple[_Call, ToolAnswer]]
    call: _Call | None = None
    is_abandoned: bool = False


class ToolRunner:
    """Runs calls in threads and hands their answers to the one thread that submits and collects.

    Nothing that a tool does reaches that thread as an exception. A call is given up when it outlasts its tool's
    `timeout_s`, counted from the moment it begins to run; the thread that hangs in it is left behind and another takes
    its place.

    Args:
        tools: what may be called: tools, and what offers tools once it is started; the runner starts and stops
            them.
        max_parallel: calls that run at once; more wait for their turn.
        max_result_chars: characters of an answer; a longer one is cut, with a note.
        attempts: at a call whose tool raises what it does not mean the model to read, such as an error of the network;
            a `ToolError` is an answer, and so is an empty text.
        retry_wait_s: seconds before the second attempt, twice as long before each further one. All attempts together
            have the tool's `timeout_s`.

    Raises:
        ValueError: if two tools have one name, or a limit is not positive.
    """

    def __init__(
        self,
        tools: Sequence[ToolProvider],
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
        self.providers = tuple(tools)
        self.tools = _by_name(self.providers)
        self.max_parallel = max_parallel
        self.max_result_chars = max_result_chars
        self.attempts = attempts
        self.retry_wait_s = retry_wait_s
        self._stopping = threading.Event()
        self._in_flight: dict[int, _Call] = {}
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._check_at = 0.0
        """Before this no call can have reached its limit."""
        self._logged: set[tuple[str, type[Exception]]] = set()

    def start(self) -> None:
        """Starts the tools, then the threads; does nothing if the runner is started.

        Raises:
            Exception: whatever starting a tool raises; those started before it are stopped again.
            ValueError: if two tools have one name.
        """
        if self._workers:
            return
        with ExitStack() as started:
            for provider in self.providers:
                started.callback(provider.stop)
                provider.start()
            self.tools = _by_name(self.providers)
            started.pop_all()
        self._stopping.clear()
        # New queues: a thread that was left behind still holds the old ones.
        self._todo: SimpleQueue[_Call | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[_Call, ToolAnswer]] = SimpleQueue()
        self._workers = [self._new_worker() for _ in range(self.max_parallel)]

    def stop(self) -> None:
        """Drops what is in flight and stops threads and tools; does nothing if the runner is not started."""
        if not self._workers:
            return
        self._in_flight.clear()
        self._stopping.set()
        for worker in self._workers:
            worker.is_abandoned = True
        for _ in self._threads:
            self._todo.put(None)
        for provider in self.providers:
            provider.stop()
        deadline = time.monotonic() + _STOP_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._workers, self._threads = [], []

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as a chat template takes them (``tools=``), in their order.

        Raises:
            RuntimeError: if the runner is not started: only then does it know all tools.
        """
        if not self._workers:
            raise RuntimeError("the tool runner must be started before it knows its tools")
        return [tool.schema for tool in self.tools.values()]

    @property
    def num_in_flight(self) -> int:
        """Calls submitted and not yet returned."""
        return len(self._in_flight)

    def submit(self, key: int, tool: str, argument: str | Mapping[str, Any], earlier: Sequence[ToolCall] = ()) -> None:
        """Queues a call.

        Args:
            key: chosen by the caller, unique among the calls in flight.
            tool: name of the tool; an unknown one is answered with those that are known.
            argument: what the model passed: the text that the tool takes, or arguments by name.
            earlier: calls of the same trajectory to the same tool, oldest first.

        Raises:
            RuntimeError: if the runner is not started.
            ValueError: if a call with that key is in flight.
        """
        if not self._workers:
            raise RuntimeError("the tool runner must be started before calls are submitted")
        if key in self._in_flight:
            raise ValueError(f"key must be unique among the calls in flight, got {key} again")
        self._in_flight[key] = call = _Call(key, tool, argument, earlier, time.monotonic())
        self._todo.put(call)

    def finished(self, wait_s: float | None = 0.0) -> list[ToolAnswer]:
        """Returns the calls that ended since the last time, each once.

        Args:
            wait_s: seconds to wait for the first one; 0 does not wait, None waits as long as any is in flight.
        """
        wait_until = math.inf if wait_s is None else time.monotonic() + wait_s
        answers = self._collect() + self._give_up()
        while self._in_flight and not answers and (left_s := wait_until - time.monotonic()) > 0.0:
            until_check_s = max(self._check_at - time.monotonic(), 1e-3)
            answers = self._collect(min(left_s, until_check_s)) + self._give_up()
        return answers

    def _collect(self, wait_s: float = 0.0) -> list[ToolAnswer]:
        answers: list[ToolAnswer] = []
        with suppress(Empty):
            while True:
                may_wait = wait_s > 0.0 and not answers
                call, answer = self._done.get(may_wait, wait_s if may_wait else None)
                # The late answer of a call that was given up finds no entry, or that of a later call with its key.
                if self._in_flight.get(call.key) is call:
                    del self._in_flight[call.key]
                    answers.append(answer)
        return answers

    def _give_up(self) -> list[ToolAnswer]:
        now, answers = time.monotonic(), []
        if now < self._check_at:
            return []
        for slot, worker in enumerate(self._workers):
            call = worker.call
            if call is None or call.deadline > now:
                continue
            worker.is_abandoned = True
            self._workers[slot] = self._new_worker()
            if self._in_flight.get(call.key) is call:
                del self._in_flight[call.key]
                text = f"Timed out after {self.tools[call.tool].timeout_s:g} seconds."
                answers.append(ToolAnswer(call.key, text, "timeout", now - call.submitted_at))
        deadlines = [call.deadline for worker in self._workers if (call := worker.call)]
        # A call that has not begun yet has all its time before it.
        limits = [now + tool.timeout_s for tool in self.tools.values()]
        self._check_at = min([*deadlines, *limits, now + _MAX_WAIT_S])
        return answers

    def _new_worker(self) -> _Worker:
        worker = _Worker(self._todo, self._done)
        # A daemon: a tool that hangs must not keep the interpreter from ending.
        thread = threading.Thread(target=self._work, args=(worker,), name="appo-tool", daemon=True)
        thread.start()
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        return worker

    def _work(self, worker: _Worker) -> None:
        while not worker.is_abandoned and (call := worker.todo.get()):
            if call.tool in self.tools:
                call.deadline = time.monotonic() + self.tools[call.tool].timeout_s + GRACE_S
            worker.call = call
            text, failure = self._answer(call)
            worker.call = None
            # Half of a surrogate pair is no text: neither a tokenizer nor a file takes it.
            text = shorten(text.encode(errors="replace").decode(), self.max_result_chars)
            worker.done.put((call, ToolAnswer(call.key, text, failure, time.monotonic() - call.submitted_at)))

    def _answer(self, call: _Call) -> tuple[str, Failure | None]:
        tool = self.tools.get(call.tool)
        if tool is None:
            return f"Error: no tool is named {call.tool!r}; there are: {', '.join(self.tools)}", "unknown"
        try:
            argument = call.argument if isinstance(call.argument, str) else tool.to_text(call.argument)
            return self._try(tool, argument, call), None
        except ToolError as error:
            return str(error), error.failure
        except Exception as error:
            # The run goes on, and the model reads what went wrong; people are told once of each kind.
            if (kind := (call.tool, type(error))) not in self._logged:
                self._logged.add(kind)
                logger.warning("tool %r failed; further errors of this kind are only counted", call.tool, exc_info=True)
            return f"Error: {type(error).__name__}: {error}", "error"

    def _try(self, tool: Tool, argument: str, call: _Call) -> str:
        """Calls the tool, again if it raises what is no answer, as often as attempts and time allow."""
        wait_s = self.retry_wait_s
        for _ in range(self.attempts - 1):
            try:
                return _checked(tool.call_after(call.earlier, argument))
            except ToolError:
                raise
            except Exception:
                if time.monotonic() + wait_s >= call.deadline - GRACE_S or self._stopping.wait(wait_s):
                    raise
            wait_s *= 2
        return _checked(tool.call_after(call.earlier, argument))


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

"""Search by asking a service over HTTP."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from appo.core.secrets import fill_in, refuse_secrets
from appo.tools.base import ToolError, ToolTimeoutError
from appo.tools.search.tool import SEARCH_BACKENDS, SearchBackend
from appo.workers.http import BadAnswerError, HTTPCaller
from appo.workers.pacing import Pace
from appo.workers.retries import BackOff, PassingError, StoppedError, is_passing, retry_after_s, retrying

_MAX_ANSWER_BYTES = 16 * 2**20
_LONGEST_PAUSE_S = 30.0
_STOPPED = "The search was stopped."


@SEARCH_BACKENDS.register
@dataclass(eq=False)
class HTTPSearch(SearchBackend):
    """Sends the query to an HTTP endpoint and takes the passages out of its JSON answer.

    ``{NAME}`` in a header or a field stands for the environment variable of that name, read at the start: keys stand in
    no config, no log and no failure text. An attempt that fails for a passing reason (no connection, no answer in time,
    statuses 408, 409, 425, 429 and those from 500 on) is made again after a growing pause, or after that which the
    server asks for; every other failure ends the search at once.
    """

    url: str
    """Of the endpoint, ``http://`` or ``https://``."""
    method: Literal["GET", "POST"] = "GET"
    """`GET` sends the fields in the URL, `POST` as a JSON object."""
    query_field: str = "q"
    """Field of the query; dots lead into nested objects, as in ``input.query``."""
    limit_field: str | None = None
    """Field of the number of passages wanted; `null`: it is not sent."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Further fields, sent as they are but for ``{NAME}``."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers; those that carry keys take them from the environment: ``Authorization: "Bearer {SEARCH_KEY}"``."""
    results_field: str = "results"
    """Field of the answer that is the list of results; dots lead into nested objects. Empty for the answer itself."""
    results_optional: bool = False
    """Whether an answer without the list says that there are no results; else it is a failure."""
    text_field: str = "text"
    """Field of a result that is the passage; empty if a result is a text itself. Results without one are left out."""
    title_field: str | None = None
    """Field of a result that goes in front of the passage; `null`: none does."""
    url_field: str | None = None
    """Field of a result that goes behind the passage, in parentheses; `null`: none does."""
    max_attempts: int = 3
    """Attempts of one search."""
    first_pause_s: float = 0.5
    """Longest pause after the first failure; it doubles with each further one, up to 30 seconds."""
    requests_per_s: float | None = None
    """Requests a second of this process, evenly spaced; `null`: no limit."""
    request_timeout_s: float = 10.0
    """Seconds of one attempt."""
    timeout_s: float = 25.0
    """Seconds of one search with all its attempts and pauses; less than the tool's own limit."""

    _connection: _Connection | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        # Neither may be shown: both are where keys are put.
        if "@" in self.url or "?" in self.url:
            raise ValueError("url must have no user and no query, which belong into headers and fields")
        for name in ("query_field", "limit_field"):
            path = getattr(self, name)
            if path is not None and (not all(path.split(".")) or (self.method == "GET" and "." in path)):
                raise ValueError(f"{name} must be a name, or names joined by dots where method is POST, got {path!r}")
        refuse_secrets(self.headers, "headers")
        refuse_secrets(self.fields, "fields")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be positive, got {self.max_attempts}")
        for name in ("first_pause_s", "requests_per_s", "request_timeout_s", "timeout_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0.0 < seconds < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {seconds}")

    @property
    def identity(self) -> str:
        request = [self.url, self.method, self.query_field, self.limit_field, self.fields]
        answer = [self.results_field, self.text_field, self.title_field, self.url_field]
        return f"HTTPSearch({json.dumps([*request, *answer], sort_keys=True)})"

    def start(self) -> None:
        """Reads the environment and opens the connection pool.

        Raises:
            ValueError: if an environment variable that is named is not set.
        """
        if self._connection is not None:
            return
        # It logs the URL of every request, and a URL may hold a key.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        headers, fields = fill_in(self.headers, "headers"), fill_in(self.fields, "fields")
        self._connection = _Connection(HTTPCaller("appo-search", headers), fields, Pace(self.requests_per_s))

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.stopped.set()
            self._connection.caller.close()
            self._connection = None

    def search(self, query: str, limit: int) -> list[str]:
        connection = self._connection
        if connection is None:
            raise RuntimeError("HTTPSearch must be started before it is searched")
        deadline = time.monotonic() + self.timeout_s
        back_off = BackOff(self.first_pause_s, _LONGEST_PAUSE_S)
        attempts = retrying(back_off, self.max_attempts, self.timeout_s, connection.stopped)
        try:
            answer = attempts(self._ask, connection, query, limit, deadline)
        except PassingError as error:
            number = attempts.statistics["attempt_number"]
            if number < self.max_attempts:
                raise ToolTimeoutError("The search was given up: the service is too slow.") from None
            text = f"The search failed after {number} attempts: {error}."
            raise ToolTimeoutError(text) if isinstance(error, _LateError) else ToolError(text) from None
        except StoppedError:
            raise ToolError(_STOPPED) from None
        return self._passages(answer)[:limit]

    def _ask(self, connection: _Connection, query: str, limit: int, deadline: float) -> Any:
        """One attempt.

        Raises:
            PassingError: if another one may succeed.
            ToolError: if none will.
        """
        connection.wait_for_turn(deadline)
        fields = _with(connection.fields, self.query_field, query)
        if self.limit_field is not None:
            fields = _with(fields, self.limit_field, limit)
        until = min(deadline, time.monotonic() + self.request_timeout_s)
        content: dict[str, Any] = {"params": fields} if self.method == "GET" else {"json": fields}
        timeout_s = max(until - time.monotonic(), 1e-3)
        try:
            answer = connection.caller.ask(
                self.method, self.url, timeout_s=timeout_s, max_bytes=_MAX_ANSWER_BYTES, **content
            )
        except TimeoutError:
            raise _LateError from None
        except BadAnswerError as error:
            raise ToolError(f"The search failed: {error}.") from None
        except httpx.HTTPError as error:
            # Its text may hold headers, and with them keys.
            raise PassingError(f"no answer ({type(error).__name__})") from None
        status = f"status {answer.status} {answer.reason}".rstrip()
        if is_passing(answer.status):
            # All threads leave the server alone, not this one only.
            connection.pace.hold(retry_after_s(answer.retry_after))
            raise PassingError(status)
        if not answer.is_success:
            raise ToolError(f"The search failed: {status}.")
        try:
            return answer.json()
        except ValueError:
            raise ToolError("The search failed: the answer is not JSON.") from None

    def _passages(self, answer: Any) -> list[str]:
        results = _get(answer, self.results_field)
        if results is None and self.results_optional:
            return []
        if not isinstance(results, list):
            raise ToolError(f"The search failed: the answer has no list in {self.results_field!r}.")
        passages = (self._passage(result) for result in results)
        return list(dict.fromkeys(filter(None, passages)))

    def _passage(self, result: Any) -> str:
        text = _text(result, self.text_field)
        if not text:
            return ""
        title = _text(result, self.title_field) if self.title_field is not None else ""
        url = _text(result, self.url_field) if self.url_field is not None else ""
        return ": ".join(filter(None, (title, text))) + (f" ({url})" if url else "")


class _LateError(PassingError):
    """An attempt had no answer in time."""

    def __init__(self) -> None:
        super().__init__("no answer in time")


@dataclass(eq=False)
class _Connection:
    """What exists between `start` and `stop`; keys stand in it, so that it must not be shown."""

    caller: HTTPCaller
    fields: dict[str, Any]
    pace: Pace
    stopped: threading.Event = field(default_factory=threading.Event)

    def wait_for_turn(self, deadline: float) -> None:
        """Waits until a request may be made.

        Raises:
            ToolTimeoutError: if that is past the deadline.
            ToolError: if the connection is stopped meanwhile.
        """
        moment = self.pace.pop_moment(until=deadline)
        if moment is None:
            raise ToolTimeoutError("The search was given up: the service takes no more searches for now.")
        if self.stopped.wait(max(moment - time.monotonic(), 0.0)):
            raise ToolError(_STOPPED)


def _with(fields: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the fields with a value at a dotted path."""
    first, _, rest = path.partition(".")
    return {**fields, first: _with(fields.get(first, {}), rest, value) if rest else value}


def _get(value: Any, path: str) -> Any:
    """What lies at a dotted path; None if nothing does."""
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(result: Any, path: str) -> str:
    text = _get(result, path)
    return text.strip() if isinstance(text, str) else ""

"""Answers of services that are not trusted: limited in bytes and in time, and never unpacked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import httpx

from appo.core.foreign_json import parse_json
from appo.workers.loops import LoopThread, cancel_others
from appo.workers.retries import StoppedError

_CONNECT_S = 10.0

_MAX_REFUSAL_BYTES = 4096
"""Of an answer whose status is a failure; the rest is not read."""


class BadAnswerError(Exception):
    """An answer is larger than it may be, or packed."""


@dataclass(frozen=True)
class Answer:
    """What a service has answered.

    Attributes:
        status: of HTTP.
        reason: that stands behind the status.
        retry_after: what stands in ``Retry-After``; None if nothing does.
        body: all of it; of a failure the beginning.
    """

    status: int
    reason: str
    retry_after: str | None
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body, whatever its bytes are."""
        return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: if it is none, or nested too deeply.
        """
        return parse_json(self.body)


async def ask(
    client: httpx.AsyncClient, method: str, url: str, *, timeout_s: float, max_bytes: int, **content: Any
) -> Answer:
    """Asks once. An answer that is packed is refused unread: a few bytes may unpack to as many as there is memory for.

    Args:
        client: that has its own headers and limits; whoever is late, its connection is closed.
        method: of HTTP.
        url: whom to ask.
        timeout_s: until the whole answer must be there, however its parts come.
        max_bytes: of the answer.
        content: as httpx takes it: `json`, `params`, `headers`.

    Raises:
        TimeoutError: if it is not.
        BadAnswerError: if it is larger, or packed.
        httpx.HTTPError: if there is no answer.
    """
    content["headers"] = {"Accept-Encoding": "identity", **content.get("headers", {})}
    # An address where nobody is at home is found out sooner than one where somebody thinks.
    timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
    try:
        async with asyncio.timeout(timeout_s), client.stream(method, url, timeout=timeout, **content) as response:
            body = await _read(response, max_bytes)
            retry_after = response.headers.get("Retry-After")
            return Answer(response.status_code, response.reason_phrase, retry_after, body)
    except httpx.TimeoutException as error:
        raise TimeoutError(type(error).__name__) from error


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    is_packed = coding not in ("", "identity")
    if not response.is_success:
        max_bytes = _MAX_REFUSAL_BYTES
    elif is_packed:
        raise BadAnswerError(f"the answer is packed ({coding[:40]}), which nobody asked for")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > max_bytes:
            if response.is_success:
                raise BadAnswerError(f"the answer has more than {max_bytes / 2**20:g} MiB")
            break
    return b"" if is_packed else bytes(body[:max_bytes])


class HTTPCaller:
    """Asks for any number of threads at once, each of which waits for its answer.

    An event loop in a thread of its own holds the connections: there a deadline ends what is under way.

    Args:
        name: of the thread.
        headers: of every request.
        max_connections: at once; None sets no limit.
    """

    def __init__(self, name: str, headers: Mapping[str, str], max_connections: int | None = None) -> None:
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        self._client = httpx.AsyncClient(headers=headers, limits=limits)
        self._loop = LoopThread(name)
        self._submitting = threading.Lock()
        self._is_closed = False

    def ask(self, method: str, url: str, *, timeout_s: float, max_bytes: int, **content: Any) -> Answer:
        """Asks once, as the function `ask` does.

        Raises:
            StoppedError: if it is closed before there is an answer.
        """
        # What is submitted after the loop has ended would never end.
        with self._submitting:
            if self._is_closed:
                raise StoppedError("stopped before it was asked")
            answer = self._loop.spawn(
                ask(self._client, method, url, timeout_s=timeout_s, max_bytes=max_bytes, **content)
            )
        try:
            return answer.result()
        except CancelledError as error:
            raise StoppedError("stopped before there was an answer") from error

    def close(self) -> None:
        """Ends what is under way and closes all connections."""
        with self._submitting:
            if self._is_closed:
                return
            self._is_closed = True
        self._loop.run(self._end())
        self._loop.close()

    async def _end(self) -> None:
        await cancel_others()
        await self._client.aclose()

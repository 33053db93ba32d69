"""One vLLM server: its address, what it is known to hold, and how it is called."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from appo.core.secrets import without_secrets
from appo.engines.vllm_server.answers import ServerError, reading
from appo.workers.http import BadAnswerError, ask
from appo.workers.retries import is_passing

log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 256 * 2**20
"""Of a server; that to a request of 100,000 tokens has some tens of MiB."""

_LOOK_S = 10.0
"""For an answer to what weights a server has, at most: one that hangs is found out sooner than by long requests."""


@dataclass(eq=False)
class Server:
    """One server, as far as it is known."""

    address: str
    client: httpx.AsyncClient
    timeout_s: float
    """Of one call."""
    tag: str | None = None
    """Of the weights it was last known to hold; None if that must be asked."""
    is_torn: bool = False
    """Whether an update by vLLM's own transfer began and did not end: layers may wait for the rest of it."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """That name environment variables, whose values no message shows: a server may repeat the key that it refuses."""
    num_running: int = 0
    last_error: ServerError | ValueError | None = None
    preparing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = math.inf
    ) -> Any:
        """One HTTP call.

        Args:
            method: of HTTP.
            path: what is asked for.
            body: sent as JSON.
            timeout_s: at most that of every call.

        Raises:
            ServerError: if it failed in a way that need not last.
            ValueError: if the server refuses what it was asked.
        """
        try:
            answer = await ask(
                self.client,
                method,
                path,
                timeout_s=min(timeout_s, self.timeout_s),
                max_bytes=_MAX_ANSWER_BYTES,
                json=body,
            )
        except TimeoutError as error:
            raise ServerError(f"{path} was not answered in time") from error
        except (httpx.TransportError, BadAnswerError) as error:
            raise ServerError(f"{type(error).__name__}: {error}") from error
        text = without_secrets(answer.text, self.headers)[:500]
        if is_passing(answer.status):
            raise ServerError(f"{path} answered {answer.status}: {text}")
        if not answer.is_success:
            hint = _HINTS.get(path, "") if answer.status == 404 else ""
            raise ValueError(f"{self.address}{path} answered {answer.status}: {text}{hint}")
        try:
            return answer.json() if answer.body else None
        except ValueError as error:
            raise ServerError(f"{path} answered no JSON: {error}") from error

    async def weight_tag(self) -> str:
        """What it calls the weights that it holds."""
        answer = await self.call("GET", "/weight_info", timeout_s=_LOOK_S)
        with reading("/weight_info"):
            return str(answer["weight_version"])

    def record_failure(self, error: ServerError | ValueError) -> None:
        """Its weights must be asked for; of failures of one kind in a row, the log warns once."""
        is_news = self.tag is not None or type(self.last_error) is not type(error)
        log.log(logging.WARNING if is_news else logging.DEBUG, "%s: %s", self.address, error)
        self.tag, self.last_error = None, error


_HINTS = {
    "/inference/v1/generate": "; start the server with --enable-scale-out",
    "/weight_info": "; start the server with VLLM_SERVER_DEV_MODE=1 in its environment",
    "/server_info?config_format=json": "; start the server with VLLM_SERVER_DEV_MODE=1 in its environment",
}

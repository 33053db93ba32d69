"""Servers that may come and go: requests go where they can be answered, by the weights that are wanted."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from appo.core.secrets import fill_in, without_secrets
from appo.engines.vllm_server.answers import ServerError, check_tokens, reading
from appo.workers.http import BadAnswerError, ask
from appo.workers.retries import BackOff, is_passing

log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 256 * 2**20
"""Of a server; that to a request of 100,000 tokens has some tens of MiB."""

_FIRST_TAG = "default"
"""What a vLLM server calls the weights that it started with."""

_BACK_OFF = BackOff(0.1, 5.0)
"""Pauses between attempts."""

_LOOK_S = 5.0
"""Pauses between looks at servers that others may find without their weights."""

_SLACK = 8
"""Requests that a server may have more than the least busy one before others than its own are sent elsewhere."""


@dataclass(frozen=True)
class Weights:
    """What a server must hold before it is asked.

    Attributes:
        tag: name of this version in this run; every answer of a server names what sampled it.
        folder: holds the tensors; none for a model that only the server itself can find.
    """

    tag: str
    folder: Path | None


@dataclass(eq=False)
class Server:
    """One server, as far as it is known."""

    address: str
    client: httpx.AsyncClient
    timeout_s: float
    """Of one call."""
    tag: str | None = None
    """Of the weights it was last known to hold; None if that must be asked."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """That name environment variables, whose values no message shows: a server may repeat the key that it refuses."""
    num_running: int = 0
    last_error: str = ""
    preparing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One HTTP call.

        Raises:
            ServerError: if it failed in a way that need not last.
            ValueError: if the server refuses what it was asked.
        """
        try:
            answer = await ask(
                self.client, method, path, timeout_s=self.timeout_s, max_bytes=_MAX_ANSWER_BYTES, json=body
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
        answer = await self.call("GET", "/weight_info")
        with reading("/weight_info"):
            return str(answer["weight_version"])


_HINTS = {
    "/inference/v1/generate": "; start the server with --enable-scale-out",
    "/weight_info": "; start the server with VLLM_SERVER_DEV_MODE=1 in its environment",
    "/server_info?config_format=json": "; start the server with VLLM_SERVER_DEV_MODE=1 in its environment",
}


class ServerPool:
    """Spreads requests over servers and brings each server to the wanted weights before it is asked.

    Every method runs in one event loop.

    Args:
        addresses: of the servers, such as ``http://localhost:8000``.
        headers: sent with every call; keys come from environment variables.
        timeout_s: of one call.
        recovery_s: how long all servers may fail before the pool gives up.
        weights: wanted at first.
        brings_weights: False waits until another process has brought a server to the wanted weights: of several
            processes, one must do it alone, or a server that samples for one of them would be loaded again for another.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        headers: Mapping[str, str],
        timeout_s: float,
        recovery_s: float,
        weights: Weights,
        brings_weights: bool = True,
    ) -> None:
        limits = httpx.Limits(max_connections=None)
        filled = fill_in(headers, "rollout.engine.headers")
        self.servers = [
            Server(
                address, httpx.AsyncClient(base_url=address, headers=filled, limits=limits), timeout_s, None, headers
            )
            for address in addresses
        ]
        self.recovery_s = recovery_s
        self.weights = weights
        self.brings_weights = brings_weights
        self._last_success = time.monotonic()

    async def generate(self, body: dict[str, Any], affinity: bytes) -> dict[str, Any]:
        """The answer to one request, from whichever server gives it, sampled by the wanted weights alone.

        Args:
            body: as vLLM's ``/inference/v1/generate`` takes it.
            affinity: requests that share it go to the same server while none is much busier than the others.

        Raises:
            ConnectionError: if no server has answered anything for too long.
            ValueError: if a server refuses the request.
        """
        answer: dict[str, Any] = await self._retrying()(self._ask_any, body, affinity)
        self._last_success = time.monotonic()
        return answer

    async def switch(self, weights: Weights) -> None:
        """Brings every server that can be reached to other weights; the rest follow before they are asked again.

        Raises:
            ConnectionError: if there is none.
        """
        self.weights = weights
        await self._retrying()(self._prepare_all)
        self._last_success = time.monotonic()

    async def keep(self) -> None:
        """Brings servers that were started anew to the wanted weights though nothing is asked here; does not end."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for server in self.servers:
                try:
                    if await server.weight_tag() != server.tag:
                        server.tag = None
                        await self._prepare(server)
                except ServerError as error:
                    server.tag = None
                    log.debug("%s: %s", server.address, error)

    async def close(self) -> None:
        """Closes all connections."""
        await asyncio.gather(*(server.client.aclose() for server in self.servers))

    def _retrying(self) -> AsyncRetrying:
        """Makes attempts until no server has answered for too long."""

        def has_waited_enough(state: RetryCallState) -> bool:
            return time.monotonic() - max(self._last_success, state.start_time) > self.recovery_s

        def give_up(state: RetryCallState) -> None:
            errors = "; ".join(f"{s.address}: {s.last_error or 'not asked'}" for s in self.servers)
            cause = state.outcome.exception() if state.outcome is not None else None
            raise ConnectionError(f"no vLLM server has answered for {self.recovery_s:g} s ({errors})") from cause

        return AsyncRetrying(
            retry=retry_if_exception_type(ServerError),
            wait=_BACK_OFF,
            stop=has_waited_enough,
            retry_error_callback=give_up,
        )

    async def _ask_any(self, body: dict[str, Any], affinity: bytes) -> dict[str, Any]:
        """The answer of the first server that gives one; each is asked once.

        Raises:
            ServerError: if none does.
        """
        untried = list(self.servers)
        while True:
            server = self._choose(affinity, untried)
            try:
                await self._prepare(server)
                return await self._ask(server, body)
            except ServerError as error:
                _record_failure(server, error)
                untried.remove(server)
                if not untried:
                    raise

    async def _prepare_all(self) -> None:
        """Brings to the wanted weights every server that can be reached.

        Raises:
            ServerError: if there is none.
        """
        failures = await asyncio.gather(*map(self._prepare, self.servers), return_exceptions=True)
        for server, failure in zip(self.servers, failures, strict=True):
            if isinstance(failure, ServerError):
                _record_failure(server, failure)
            elif isinstance(failure, BaseException):
                raise failure
        if all(failures):
            raise ServerError("no server can be reached")

    def _choose(self, affinity: bytes, servers: Sequence[Server]) -> Server:
        """Of these servers, the one that the affinity points to, unless it is much busier than another."""
        least = min(server.num_running for server in servers)
        free = [server for server in servers if server.num_running <= least + _SLACK]
        return max(free, key=lambda server: hashlib.blake2b(server.address.encode() + affinity).digest())

    async def _ask(self, server: Server, body: dict[str, Any]) -> dict[str, Any]:
        server.num_running += 1
        try:
            answer: dict[str, Any] = await server.call("POST", "/inference/v1/generate", body)
        finally:
            server.num_running -= 1
        with reading("/inference/v1/generate"):
            choice = answer["choices"][0]
            reason, _ = choice["finish_reason"], choice["stop_reason"]
            sampled_by = {span["version"] for span in choice["weight_versions"] or ()}
        if reason not in ("stop", "length"):
            raise ServerError(f"a request ended with {reason!r}")
        if sampled_by != {self.weights.tag}:
            raise ServerError(f"weights {sampled_by} sampled instead of {self.weights.tag!r}")
        with reading("/inference/v1/generate"):
            check_tokens(choice)
        return answer

    async def _prepare(self, server: Server) -> None:
        """Makes sure that a server holds the wanted weights; one that was started anew holds its first ones."""
        if server.tag == self.weights.tag:
            return
        async with server.preparing:
            wanted = self.weights
            if server.tag == wanted.tag:  # another request has seen to it meanwhile
                return
            tag = await server.weight_tag()
            if tag != wanted.tag:
                if not self.brings_weights:
                    raise ServerError(f"has weights {tag!r}, and waits for the first process to load {wanted.tag!r}")
                if wanted.folder is not None:
                    log.info("%s loads weights %s", server.address, wanted.tag)
                    kwargs = {"weights_path": str(wanted.folder)}
                    await server.call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})
                    await server.call("POST", "/reset_prefix_cache")
                elif tag != _FIRST_TAG:
                    raise ValueError(
                        f"{server.address} must hold the weights it started with, got {tag!r} of an earlier run: "
                        "start it again, or give model.policy as a folder that it can read"
                    )
                await server.call("POST", "/update_weight_version", {"new_version": wanted.tag})
            server.tag, server.last_error = wanted.tag, ""


def _record_failure(server: Server, error: ServerError) -> None:
    is_news = server.tag is not None or not server.last_error
    log.log(logging.WARNING if is_news else logging.DEBUG, "%s: %s", server.address, error)
    server.tag, server.last_error = None, str(error)

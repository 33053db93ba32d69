"""Servers that may come and go: requests go where they can be answered, by the weights that are wanted."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from appo.core.secrets import fill_in
from appo.engines.vllm_server.answers import MissedWeightsError, ServerError, check_tokens, reading
from appo.engines.vllm_server.server import Server
from appo.workers.retries import BackOff

log = logging.getLogger(__name__)

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
        folder: holds the tensors; none for a model that only the server itself can find, and for what was broadcast.
        is_broadcast: they went to all servers at once: one that missed them cannot get them any more.
    """

    tag: str
    folder: Path | None
    is_broadcast: bool = False


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
                address, httpx.AsyncClient(base_url=address, headers=filled, limits=limits), timeout_s, headers=headers
            )
            for address in dict.fromkeys(addresses)
        ]
        self.timeout_s = timeout_s
        self.recovery_s = recovery_s
        self.weights = weights
        self.brings_weights = brings_weights
        self.is_switching = False
        """Whether servers are on their way to the weights of the next `switch`, some earlier than others."""
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
        self.weights, self.is_switching = weights, False
        await self._retrying()(self._prepare_all)
        self._last_success = time.monotonic()

    async def keep(self) -> None:
        """Looks which servers are there, and brings those that were started anew to the wanted weights; does not end.

        That is for servers which nothing is asked of here.
        """
        while True:
            await asyncio.sleep(_LOOK_S)
            await asyncio.gather(*map(self._look_after, self.servers))

    async def reachable(self) -> list[Server]:
        """Those that answer, with the weights that they say they have; waits for the first one.

        Raises:
            ConnectionError: if there is none.
        """
        found: list[Server] = await self._retrying()(self._look_around)
        return found

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
            done, hint = "answered", ""
            if self.weights.is_broadcast:
                done = f"had the weights {self.weights.tag}"
                hint = ": started again, the run goes on from its checkpoint"
            raise ConnectionError(f"no vLLM server has {done} for {self.recovery_s:g} s ({errors}){hint}") from cause

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
        if self.weights.is_broadcast:  # others have them never again
            untried = [server for server in untried if server.tag == self.weights.tag] or untried
        while True:
            server = self._choose(affinity, untried)
            try:
                await self._prepare(server)
                return await self._ask(server, body)
            except ServerError as error:
                server.record_failure(error)
                untried.remove(server)
                if not untried:
                    raise

    async def _prepare_all(self) -> None:
        """Brings to the wanted weights every server that can be reached.

        Raises:
            ServerError: if there is none.
        """
        failures = await asyncio.gather(*map(self._prepare, self.servers), return_exceptions=True)
        if len(_record(self.servers, failures)) == len(self.servers):
            raise ServerError("no server can be reached")

    async def _look_around(self) -> list[Server]:
        """Those that can be reached.

        Raises:
            ServerError: if there is none.
        """
        tags = await asyncio.gather(*(server.weight_tag() for server in self.servers), return_exceptions=True)
        failed = _record(self.servers, tags)
        found = []
        for server, tag in zip(self.servers, tags, strict=True):
            if server not in failed:
                server.tag = str(tag)
                found.append(server)
        if not found:
            raise ServerError("no server can be reached")
        return found

    async def _look_after(self, server: Server) -> None:
        try:
            if await server.weight_tag() != server.tag and not self.is_switching:
                server.tag = None
                await self._prepare(server)
        except (MissedWeightsError, ValueError) as error:  # one that refuses the call may be started otherwise
            server.record_failure(error)
        except ServerError as error:
            server.tag = None
            log.debug("%s: %s", server.address, error)

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
                if wanted.is_broadcast:
                    raise MissedWeightsError(
                        f"has weights {tag!r} and not {wanted.tag!r}: it samples again from the next update on"
                    )
                if not self.brings_weights:
                    raise ServerError(f"has weights {tag!r}, and waits for the first process to load {wanted.tag!r}")
                if wanted.folder is not None:
                    log.info("%s loads weights %s", server.address, wanted.tag)
                    kwargs = {"weights_path": str(wanted.folder)}
                    await server.call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": kwargs})
                    await server.call("POST", "/reset_prefix_cache")
                    # A run that was cut off in the middle of an update has left it paused.
                    await server.call("POST", "/resume")
                elif tag != _FIRST_TAG:
                    raise ValueError(
                        f"{server.address} must hold the weights it started with, got {tag!r} of an earlier run: "
                        "start it again, or give model.policy as a folder that it can read"
                    )
                await server.call("POST", "/update_weight_version", {"new_version": wanted.tag})
            elif wanted.is_broadcast and self.brings_weights:
                await server.call("POST", "/resume")  # it may have failed after it had the weights
            server.tag, server.last_error = wanted.tag, None


def _record(servers: Sequence[Server], outcomes: Sequence[object]) -> list[Server]:
    """Those of the servers that failed.

    Args:
        servers: that were called at the same time.
        outcomes: of each, what it returned or raised.
    """
    failed = []
    for server, outcome in zip(servers, outcomes, strict=True):
        if isinstance(outcome, ServerError):
            server.record_failure(outcome)
            failed.append(server)
        elif isinstance(outcome, BaseException):
            raise outcome
    return failed

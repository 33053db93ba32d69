"""The calls of vLLM's own weight transfer, to several servers as if they were one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

from appo.engines.vllm_server.answers import ServerError, reading
from appo.engines.vllm_server.server import Server
from appo.workers.loops import LoopThread


class TransferClient:
    """What the trainer's side of vLLM calls, its `VLLMWeightSyncClient`, in whichever thread.

    All servers are asked at once. Where one fails, the calls to the others end too.

    Args:
        loop: of the servers' connections.
        servers: that take part.
        lost: called as soon as a server cannot receive: whoever sends to it would wait for ever.
    """

    def __init__(self, loop: LoopThread, servers: Sequence[Server], lost: Callable[[], None]) -> None:
        self.servers = list(servers)
        self.tag = ""
        """Of the weights that are sent."""
        self.failure: ServerError | ValueError | None = None
        """Of the last call."""
        self._num_workers: dict[Server, int] = {}
        self._lost = lost
        self._loop = loop
        self._running: Future[None] | None = None
        self._is_closed = False
        self._beginning = threading.Lock()

    def count_workers(self) -> int:
        """Counts the processes of all servers that receive weights."""

        async def count(server: Server) -> None:
            answer = await server.call("GET", "/get_world_size")
            with reading("/get_world_size"):
                self._num_workers[server] = int(answer["world_size"])

        self._run(count)
        return sum(self._num_workers.values())

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Has the workers of all servers join the group, one server's behind another's."""
        offsets, following = {}, 1  # the trainer is the first of the group
        for server in self.servers:
            offsets[server] = following
            following += self._num_workers[server]

        async def connect(server: Server) -> None:
            with suppress(ServerError):  # it may hold what is left of a group that is no more
                await server.call("POST", "/shutdown_weight_transfer_engine")
            own = {"rank_offset": offsets[server]}
            await server.call("POST", "/init_weight_transfer_engine", {"init_info": init_info | own})

        self._run(connect)

    def start_weight_update(self) -> None:
        """Pauses the servers, and has them expect all weights."""
        self._run(_start)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Has the servers receive what is sent meanwhile."""

        async def update(server: Server) -> None:
            await server.call("POST", "/update_weights", {"update_info": update_info})

        try:
            self._run(update)
        except (ServerError, ValueError):
            if not self._is_closed:  # by now another group may be under way
                self._lost()
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Names the weights and ends the pause; servers that fail now have lost theirs, the others have them."""
        outcomes: list[ServerError | None] = []

        async def finish(server: Server) -> None:
            try:
                await _finish(server, weight_version or self.tag)
            except ServerError as error:
                server.record_failure(error)
                outcomes.append(error)
            else:
                outcomes.append(None)

        self._run(finish)
        if all(outcomes):
            raise ServerError(f"no server has finished the update ({outcomes[0]})")

    def close(self) -> None:
        """Ends the call that another thread waits for, which would keep the process from ending; no other begins."""
        with self._beginning:
            self._is_closed = True
        if self._running is not None:
            self._running.cancel()

    def _run(self, work: Callable[[Server], Awaitable[None]]) -> None:
        self.failure = None
        try:
            with self._beginning:
                if self._is_closed:
                    raise CancelledError
                self._running = self._loop.spawn(_all([_named(server, work) for server in self.servers]))
            self._running.result()
        except CancelledError:
            raise ServerError("given up") from None
        except (ServerError, ValueError) as error:
            self.failure = error
            raise


async def _start(server: Server) -> None:
    # What is in flight nobody waits for any more: it timed out here, or is of a run that was cut off.
    await server.call("POST", "/pause?mode=abort")
    was_torn, server.is_torn = server.is_torn, True
    try:
        await server.call("POST", "/start_weight_update")
        if not was_torn:
            return
    except ServerError:  # an update has not been finished
        pass
    # Layers that have a part of their weights would take what comes next for the rest.
    await server.call("POST", "/finish_weight_update")
    await server.call("POST", "/start_weight_update")


async def _finish(server: Server, tag: str) -> None:
    await server.call("POST", "/reset_prefix_cache")
    await server.call("POST", "/finish_weight_update", {"weight_version": tag})
    server.is_torn, server.tag, server.last_error = False, tag, None
    await server.call("POST", "/resume")


async def _named(server: Server, work: Callable[[Server], Awaitable[None]]) -> None:
    try:
        await work(server)
    except ServerError as error:
        server.record_failure(error)
        raise ServerError(f"{server.address}: {error}") from error


async def _all(works: Sequence[Awaitable[None]]) -> None:
    """Waits for all; the first failure ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()

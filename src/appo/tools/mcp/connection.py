"""A connection to a server of the Model Context Protocol that is made anew when it is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from appo.tools.base import ToolError, ToolTimeoutError, ToolUnavailableError
from appo.workers.loops import cancel_others

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, Tool

logger = logging.getLogger(__name__)

_LONGEST_WAIT_S = 60.0
"""Between two attempts to reach a server that is gone."""
_LEAVE_S = 10.0
"""Seconds that a connection may take to end as it should; a server of our own is killed within them."""
_STOPPED = "Error: the tool was stopped."


class MCPConnection:
    """Calls the tools of one server, from any number of threads at once.

    An event loop in a thread of its own holds the connection. A call that finds the connection lost makes a new one,
    which starts a server of its own anew; after a second failure in a row, calls fail at once until a wait is over.

    Args:
        connect: makes a client, not yet entered; called for every connection.
        start_timeout_s: seconds that a connection may take to come about, whatever the call that wants it can wait.
        reconnect_wait_s: seconds before a connection is tried again after the second failure in a row; it doubles with
            each further one, up to a minute. A call that is answered ends the row.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Client]],
        start_timeout_s: float,
        reconnect_wait_s: float,
    ) -> None:
        self._connect = connect
        self._start_timeout_s = start_timeout_s
        self._reconnect_wait_s = reconnect_wait_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="appo-mcp", daemon=True)
        self._client: Client | None = None
        self._opening: asyncio.Task[Client] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._num_failures = 0
        self._retry_at = 0.0
        self._submitting = threading.Lock()
        self._is_closed = False

    def open(self) -> list[Tool]:
        """Connects and asks what tools there are; `close` must follow, also after an error.

        Raises:
            TimeoutError: if that takes too long.
            Exception: whatever keeps the client from connecting.
        """
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._list_tools(), self._loop).result()

    def close(self) -> None:
        """Ends the connection, and the server if it is one of our own; calls in flight fail."""
        with self._submitting:
            self._is_closed = True
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def call(self, name: str, arguments: Mapping[str, Any], timeout_s: float) -> CallToolResult:
        """Calls a tool of the server.

        Raises:
            ToolError: if the server refuses the call.
            ToolTimeoutError: if it does not answer in time.
            ToolUnavailableError: if it is out of reach; a call that was under way may have had its effect.
        """
        # What is submitted after the last task of the loop would never end.
        with self._submitting:
            if self._is_closed:
                raise ToolUnavailableError(_STOPPED)
            answer = asyncio.run_coroutine_threadsafe(self._call(name, arguments, timeout_s), self._loop)
        try:
            return answer.result()
        except CancelledError as error:
            raise ToolUnavailableError(_STOPPED) from error

    async def _list_tools(self) -> list[Tool]:
        client = await self._open()
        async with asyncio.timeout(self._start_timeout_s):
            page = await client.list_tools()
            tools = page.tools
            while page.next_cursor is not None:
                page = await client.list_tools(cursor=page.next_cursor)
                tools += page.tools
        return tools

    async def _call(self, name: str, arguments: Mapping[str, Any], timeout_s: float) -> CallToolResult:
        from anyio import BrokenResourceError, ClosedResourceError
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED, INVALID_REQUEST

        lost = "Error: the connection to the tool's server was lost."
        try:
            async with asyncio.timeout(timeout_s):
                client = await self._reached()
                try:
                    result = await client.call_tool(name, dict(arguments))
                except (BrokenResourceError, ClosedResourceError) as error:
                    self._lose(client)
                    raise ToolUnavailableError(lost) from error
                except MCPError as error:
                    # A server that was started anew does not know the session, and calls that an invalid request.
                    if error.code not in (CONNECTION_CLOSED, INVALID_REQUEST):
                        raise ToolError(f"Error: {error}") from error
                    self._lose(client)
                    raise ToolUnavailableError(lost) from error
        except TimeoutError as error:
            raise ToolTimeoutError(f"Timed out after {timeout_s:g} seconds.") from error
        self._num_failures = 0
        return result

    async def _reached(self) -> Client:
        """The client, connected; of the calls that find it lost, one connects and the others wait for that."""
        if self._client is not None:
            return self._client
        out_of_reach = "Error: the tool's server is out of reach"
        if self._opening is None:
            if (wait_s := self._retry_at - time.monotonic()) > 0.0:
                raise ToolUnavailableError(f"{out_of_reach}; it is tried again in {wait_s:.0f} seconds.")
            self._opening = self._loop.create_task(self._open())
            # Also if no call is left that waits for it.
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        opening = self._opening
        # Not cancelled with the call: a server that takes longer to start than one call may wait serves the next one.
        await asyncio.wait([opening])
        if error := opening.exception():
            raise ToolUnavailableError(f"{out_of_reach}: {str(error) or type(error).__name__}") from error
        return opening.result()

    async def _open(self) -> Client:
        opened: asyncio.Future[Client] = self._loop.create_future()
        self._closing = asyncio.Event()
        self._keeper = self._loop.create_task(self._keep(opened, self._closing))
        try:
            async with asyncio.timeout(self._start_timeout_s):
                self._client = await opened
        except BaseException:
            self._keeper.cancel()
            self._count_failure()
            raise
        finally:
            self._opening = None
        return self._client

    async def _keep(self, opened: asyncio.Future[Client], closing: asyncio.Event) -> None:
        """Holds a connection; the task that enters a client must be the one that leaves it."""
        client = None
        try:
            async with self._connect() as client:
                if not opened.done():
                    opened.set_result(client)
                    await closing.wait()
        except Exception as error:
            if not opened.done():
                opened.set_exception(_cause(error))
            else:  # calls in flight find out for themselves
                logger.debug("a connection to an MCP server broke", exc_info=True)
        finally:
            if client is not None and client is self._client:
                self._lose(client)

    def _lose(self, client: Client) -> None:
        if client is self._client:
            self._client = None
            self._closing.set()
            self._count_failure()

    def _count_failure(self) -> None:
        self._num_failures += 1
        if self._num_failures > 1:
            wait_s = min(self._reconnect_wait_s * 2 ** (self._num_failures - 2), _LONGEST_WAIT_S)
            self._retry_at = time.monotonic() + wait_s

    async def _shut_down(self) -> None:
        self._closing.set()
        if self._client is not None and self._keeper is not None:
            await asyncio.wait([self._keeper], timeout=_LEAVE_S)
        await cancel_others()


def _cause(error: Exception) -> Exception:
    """What went wrong, out of the groups in which task groups wrap it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error

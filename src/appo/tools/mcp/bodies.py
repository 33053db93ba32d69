"""Limits on what an MCP server answers over HTTP. To be imported where the extra `mcp` is known to be there."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2

_MAX_BODY_BYTES = 16 * 2**20


async def keep_small(response: httpx2.Response) -> None:
    """Bounds an answer that is about to be read, and leaves a packed one packed, which makes it no message.

    Events are bounded one by one by the client of the protocol; their stream may go on for as long as the connection.
    """
    response.headers.pop("Content-Encoding", None)
    if not response.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    """A stream that breaks where it is too long.

    Args:
        stream: that it is.
    """

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for part in self._stream:
            length += len(part)
            if length > _MAX_BODY_BYTES:
                # One that the client of the protocol makes the failure of the call, not of the connection.
                raise httpx2.StreamError(f"the answer has more than {_MAX_BODY_BYTES // 2**20} MiB")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()

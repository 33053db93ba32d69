"""A server of the Model Context Protocol, run as a process of its own: ``python -m tests.tools.mcp_server [port]``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent
from pydantic import Field

server = MCPServer("test", log_level="ERROR")


@server.tool()
def shout(text: str) -> str:
    """Says it in capitals."""
    return text.upper()


@server.tool()
def add(a: int, b: Annotated[int, Field(ge=0)] = 1) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def where() -> str:
    """Tells process and surroundings."""
    return f"{os.getpid()} {os.getcwd()} {os.environ.get('SECRET')} {os.environ.get('PLAIN')}"


@server.tool()
def fail(reason: str) -> str:
    """Fails."""
    raise ToolError(reason)


@server.tool()
async def sleep(seconds: float) -> str:
    """Takes its time."""
    await anyio.sleep(seconds)
    return f"slept {seconds:g} s"


@server.tool()
def die() -> str:
    """Ends the server in the middle of a call."""
    os._exit(1)


@server.tool(structured_output=False)
def picture() -> list[TextContent | ImageContent]:
    """Answers with more than text."""
    return [TextContent(text="a dot:"), ImageContent(data="AA==", mime_type="image/png")]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()

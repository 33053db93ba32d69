"""A server of the Model Context Protocol, run as a process of its own: ``python server.py [port]``.

Without a port it talks over its standard streams; with one (0 for any) over HTTP, and tells the port.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Annotated

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
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
    variables = [os.environ.get(name) for name in ("PLAIN", "PASSED", "HIDDEN")]
    return json.dumps([os.getpid(), os.getcwd(), *variables])


@server.tool()
def header(name: str, context: Context) -> str:
    """Tells a header of the request."""
    return str(context.headers.get(name))


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


def serve_http(port: int) -> None:
    # Listens before it says so: who then connects is served, if a little later.
    listener = socket.create_server(("127.0.0.1", port))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve_http(int(sys.argv[1]))
    else:
        server.run()

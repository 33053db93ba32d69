"""The tools of any server of the Model Context Protocol."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appo.core.extras import import_extra
from appo.core.secrets import fill_in, refuse_secrets, refuse_secrets_in_arguments, refuse_secrets_in_url
from appo.tools.base import TOOLS, Tool, ToolError, ToolProvider
from appo.tools.mcp.connection import MCPConnection
from appo.tools.runner import GRACE_S
from appo.tools.schema import SchemaTool

if TYPE_CHECKING:
    import mcp_types
    from mcp import Client


class MCPTool(SchemaTool):
    """A tool of a server of the Model Context Protocol.

    Args:
        connection: to the server.
        remote: the tool as the server describes it.
        prefix: put in front of its name.
        timeout_s: seconds after which a call is given up.
    """

    def __init__(self, connection: MCPConnection, remote: mcp_types.Tool, prefix: str, timeout_s: float) -> None:
        super().__init__(prefix + remote.name, remote.description or remote.title or "", remote.input_schema)
        self.timeout_s = timeout_s
        self._connection = connection
        self._remote = remote

    def call(self, arguments: dict[str, Any]) -> str:
        result = self._connection.call(self._remote.name, arguments, self.timeout_s)
        text = _to_text(result)
        if result.is_error:
            raise ToolError(text or "Error: the tool failed.")
        return text


@TOOLS.register
@dataclass(eq=False)
class MCPTools(ToolProvider):
    """The tools of a server of the Model Context Protocol, under the names and with the schemas that it gives them.

    Either `command` or `url` says which server. A server of our own is started with the run and stopped with it. One
    that dies or cannot be reached costs the calls in flight, which fail with a text, and is started or reached again.
    """

    command: Sequence[str] = ()
    """Program and arguments of a server that talks over its standard input and output."""
    url: str = ""
    """Address of a server that talks over streamable HTTP."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of `command`, beside the search path, home folder and user; keys come from the environment
    of the run: ``SOME_KEY: "{SOME_KEY}"``."""
    folder: str | None = None
    """Working folder of `command`; `null`: that of the run."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of every request to `url`; keys come from the environment: ``Authorization: "Bearer {SOME_KEY}"``."""
    include: Sequence[str] | None = None
    """Names of the server's tools that are offered; `null`: all of them."""
    prefix: str = ""
    """Put in front of every name, where two servers have tools of the same name."""
    timeout_s: float = 30.0
    """Seconds after which a call is given up."""
    start_timeout_s: float = 60.0
    """Seconds that the server may take to start and to name its tools."""
    reconnect_wait_s: float = 1.0
    """Seconds before a server that is gone is tried again after a second failure; doubled with each further one, up to
    a minute. Until then calls fail at once."""

    _connection: MCPConnection | None = field(default=None, init=False, repr=False)
    _tools: tuple[MCPTool, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.url):
            raise ValueError(f"either command or url must be set, got {list(self.command)} and {self.url!r}")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        refuse_secrets_in_url(self.url, "url")
        refuse_secrets_in_arguments(self.command, "command")
        refuse_secrets(self.env, "env")
        refuse_secrets(self.headers, "headers")
        for name in ("timeout_s", "start_timeout_s", "reconnect_wait_s"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    @property
    def tools(self) -> Sequence[Tool]:
        return self._tools

    def start(self) -> None:
        if self._connection is not None:
            return
        import_extra("mcp", type(self).__name__, "mcp")
        environment, headers = fill_in(self.env, "env"), fill_in(self.headers, "headers")
        connection = MCPConnection(
            lambda: self._connect(environment, headers), self.start_timeout_s, self.reconnect_wait_s
        )
        try:
            remotes = {remote.name: remote for remote in connection.open()}
        except Exception as error:
            connection.close()
            server = self.url or " ".join(self.command)
            is_late = isinstance(error, TimeoutError)
            reason = f"no answer within {self.start_timeout_s:g} seconds" if is_late else str(error)
            raise ConnectionError(f"the MCP server {server!r} could not be started or reached: {reason}") from error
        names = list(remotes) if self.include is None else list(self.include)
        if missing := [name for name in names if name not in remotes]:
            connection.close()
            raise ValueError(f"include must name tools of the MCP server ({', '.join(remotes)}), got {missing[0]!r}")
        self._connection = connection
        self._tools = tuple(MCPTool(connection, remotes[name], self.prefix, self.timeout_s) for name in names)

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection, self._tools = None, ()

    @asynccontextmanager
    async def _connect(self, environment: Mapping[str, str], headers: Mapping[str, str]) -> AsyncIterator[Client]:
        import httpx2
        from mcp import Client, StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client

        if self.command:
            program, *arguments = self.command
            parameters = StdioServerParameters(command=program, args=arguments, env=dict(environment), cwd=self.folder)
            # The process's own error stream: what stands in for it in a notebook is no file.
            transport = stdio_client(parameters, errlog=sys.__stderr__ or sys.stderr)
            async with Client(transport) as client:
                yield client
        else:
            from appo.tools.mcp.bodies import keep_small

            headers = {"Accept-Encoding": "identity", **headers}
            async with (
                # A server may be silent for as long as a call takes.
                httpx2.AsyncClient(
                    headers=headers, timeout=self.timeout_s + GRACE_S, event_hooks={"response": [keep_small]}
                ) as http,
                Client(streamable_http_client(self.url, http_client=http)) as client,
            ):
                yield client


def _to_text(result: mcp_types.CallToolResult) -> str:
    """The texts of a result; of anything else, such as an image, what it is."""
    parts = []
    for block in result.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and (text := getattr(block.resource, "text", None)) is not None:
            parts.append(text)
        else:
            parts.append(f"[{block.type}]")
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)

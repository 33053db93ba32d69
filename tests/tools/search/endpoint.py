"""A search endpoint on this machine that answers as a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    fields: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Reply:
    """What is answered: JSON unless `body` says otherwise; held back until the endpoint closes if `hangs`."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    hangs: bool = False
    drips: bool = False


@dataclass(eq=False)
class Endpoint:
    """The address, and what was received so far."""

    url: str
    received: list[Received]


@contextmanager
def endpoint(reply: Callable[[int, Received], Reply]) -> Iterator[Endpoint]:
    """Serves until the end of the block.

    Args:
        reply: answers the n-th request, counted from 0.
    """
    received: list[Received] = []
    closing, lock = threading.Event(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            self._answer(dict(parse_qsl(urlsplit(self.path).query)))

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, fields: dict[str, Any]) -> None:
            with lock:
                request = Received(self.command, urlsplit(self.path).path, dict(self.headers), fields, time.monotonic())
                number = len(received)
                received.append(request)
            answer = reply(number, request)
            if answer.hangs:
                closing.wait(60.0)
            body = answer.body if answer.body is not None else json.dumps(answer.content).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if answer.drips:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if closing.wait(0.05):
                        return
            else:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # A client that gives up is no error of the server.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/search", received)
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()

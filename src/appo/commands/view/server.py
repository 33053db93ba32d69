"""Serves a run to a browser on this machine, while it may still be training."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from appo.commands.view.page import content_security_policy, html_page
from appo.commands.view.run import Run, packed

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")


class ViewServer(ThreadingHTTPServer):
    """Answers on loopback alone, below a path that nobody else on the machine can guess.

    Args:
        runs: one, or two to be compared.
        port: 0 takes a free one.

    Raises:
        OSError: if the port is taken.
    """

    daemon_threads = True

    def __init__(self, runs: Sequence[Run], port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)
        self.runs = runs
        self.secret = secrets.token_urlsafe(16)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.secret}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where a browser has gone before its reply was there."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, path: str) -> tuple[str, bytes, bool]:
        """The type of the content, the content, and whether it is compressed.

        Args:
            path: behind the secret.

        Raises:
            KeyError: if there is nothing there.
        """
        if path == "":
            return "text/html; charset=utf-8", html_page([run.name for run in self.runs]).encode(), False
        if path == "api/version":
            return "text/plain; charset=utf-8", "\n".join(run.version() for run in self.runs).encode(), False
        _, _, key = path.partition("api/")
        number, _, rest = key.partition("/")
        if not path.startswith("api/") or not number.isdecimal() or int(number) >= len(self.runs):
            raise KeyError(path)
        return "application/json", _block(self.runs[int(number)], rest), True


def _block(run: Run, key: str) -> bytes:
    whole: dict[str, Callable[[], dict[str, object]]] = {"overview": run.overview, "asked": lambda: {**run.asked()}}
    if key in whole:
        return packed(whole[key]())
    step, _, rest = key.partition("/")
    if rest == "index":
        return packed(run.index(step))
    kind, _, number = rest.partition("/")
    if kind != "tree" or not number.isdecimal():
        raise KeyError(key)
    return packed(run.tree(step, int(number)))


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        # A page of another host may have a name of its own lead to this address.
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        start = f"/{self.server.secret}/"
        path = urlsplit(self.path).path
        if host not in _NAMES or not secrets.compare_digest(path[: len(start)].encode(), start.encode()):
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not found", False)
            return
        try:
            content = self.server.answer(unquote(path[len(start) :]))
        except (KeyError, FileNotFoundError):
            self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"not there, or not any more", False)
            return
        self._send(HTTPStatus.OK, *content)

    def _send(self, status: HTTPStatus, kind: str, content: bytes, is_compressed: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if is_compressed:
            self.send_header("Content-Encoding", "gzip")
        policy = f"{content_security_policy(served=True, has_files=False)}; frame-ancestors 'none'"
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: the page asks every two seconds."""

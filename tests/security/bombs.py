"""Answers that are small on the wire and large in memory, and endpoints that give them."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import Any

import zstandard

_MIB = 2**20
_ZEROS = b"0" * _MIB


def gzipped_twice() -> bytes:
    """A few hundred bytes that unpack to 128 MiB."""
    packer = zlib.compressobj(1, wbits=31)
    once = b"".join(packer.compress(_ZEROS) for _ in range(128)) + packer.flush()
    return gzip.compress(once)


def zstd() -> bytes:
    """A few KiB that unpack to 128 MiB."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return b"".join(packer.compress(_ZEROS) for _ in range(128)) + packer.flush()


@contextmanager
def answering(
    status: int, headers: dict[str, str], body: bytes, pause_s: float = 0.0
) -> Iterator[tuple[str, SimpleQueue]]:
    """An endpoint that answers everything alike.

    Args:
        status: of the answer.
        headers: beside the length, if there is no other.
        body: as it goes over the wire.
        pause_s: between two bytes of the head, and of the body; 0 sends all at once.

    Yields:
        Its address, and the headers of each request.
    """
    requests: SimpleQueue[dict[str, str]] = SimpleQueue()
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def do_POST(self) -> None:
            requests.put({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            lines = [f"HTTP/1.1 {status} As Told"]
            lines += [f"{name}: {value}" for name, value in {"Content-Length": str(len(body)), **headers}.items()]
            self._send("\r\n".join([*lines, "", ""]).encode() + body)

        do_GET = do_POST  # noqa: N815  # the name is the library's

        def _send(self, content: bytes) -> None:
            if not pause_s:
                self.wfile.write(content)
                return
            for byte in content:
                self.wfile.write(bytes([byte]))
                if closing.wait(pause_s):
                    return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Who is asked too much leaves.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def nested(depth: int) -> bytes:
    """JSON that no parser follows to its end."""
    return b"[" * depth + b"]" * depth


def completion(text: str) -> bytes:
    """What a judge answers."""
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()

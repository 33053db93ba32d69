"""The process that runs one function, call after call: a script of its own that imports nothing of the package.

`appo.workers.processes` starts it, tells it over a socket what to run, and kills it when a call takes too long. It ends
when its caller is gone. It is told in pickles and answers in JSON: whatever takes it over by what it was given to read
has no way to have code run in its caller.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import math
import pickle
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, SupportsFloat

READY, VALUE, ERROR = "ready", "value", "error"
"""First word of every message to the caller."""
_GRACE_S = 5
"""Seconds beyond its limit after which a call ends the process, if no caller is left to do it."""
_LENGTH = struct.Struct(">Q")
"""Precedes a message: its bytes."""
_PART_BYTES = 2**20
_MAX_WAIT_S = 1e6
"""Longest single wait; the operating system takes no infinite one."""


def send(channel: socket.socket, message: bytes) -> None:
    """Sends a message, within the time limit of the socket.

    Raises:
        OSError: if the other end is closed.
    """
    channel.sendall(_LENGTH.pack(len(message)) + message)


def receive(channel: socket.socket, max_bytes: float = math.inf, deadline: float = math.inf) -> bytes:
    """The message that comes next.

    Args:
        channel: with the process that sends it.
        max_bytes: that it may have.
        deadline: on the monotonic clock, until when all of it must have come.

    Raises:
        EOFError: if the other end is closed.
        OSError: likewise, with messages unread.
        TimeoutError: if it has not come in time.
        ValueError: if it is longer.
    """
    (length,) = _LENGTH.unpack(_receive_bytes(channel, _LENGTH.size, deadline))
    if length > max_bytes:
        raise ValueError(f"a message of {length} bytes")
    return _receive_bytes(channel, length, deadline)


def _receive_bytes(channel: socket.socket, length: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < length:
        left_s = deadline - time.monotonic()
        if left_s <= 0.0:
            raise TimeoutError
        channel.settimeout(None if left_s == math.inf else min(left_s, _MAX_WAIT_S))
        part = channel.recv(min(length - len(data), _PART_BYTES))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def serve(channel: socket.socket) -> None:
    """Answers calls until the other end is closed."""
    paths, target, memory_mb = pickle.loads(receive(channel))
    sys.path[:] = paths
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    try:
        function = load(target)
    except BaseException:  # noqa: BLE001  # the caller says what went wrong
        send(channel, _dump(ERROR, traceback.format_exc()))
        return
    send(channel, _dump(READY, None))
    while True:
        try:
            timeout_s, message = pickle.loads(receive(channel))
        except (EOFError, ConnectionError):
            return
        # Not handled, so that it ends the process even in the middle of one long operation.
        signal.alarm(math.ceil(min(timeout_s, 2**30)) + _GRACE_S)
        send(channel, _answer(function, message))
        signal.alarm(0)


def load(target: str) -> Callable[..., Any]:
    """The function that ``package.module:name`` or ``/path/file.py:name`` stands for."""
    place, _, name = target.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("target", place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    function: Callable[..., Any] = getattr(module, name)
    return function


def _answer(function: Callable[..., Any], message: bytes) -> bytes:
    try:
        arguments, options = pickle.loads(message)
        return _dump(VALUE, function(*arguments, **options))
    except BaseException as error:  # noqa: BLE001  # what a call raises is the answer to that call
        return _dump(ERROR, f"{type(error).__name__}: {error}")


def _dump(state: str, value: Any) -> bytes:
    return json.dumps([state, value], default=_plain).encode()


def _plain(value: Any) -> Any:
    """A value that JSON has no word for, in other words: the fields of a dataclass, a float, a list.

    Raises:
        TypeError: if it is none of these.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    try:
        if isinstance(value, SupportsFloat):
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # what several numbers, such as an array, say
        pass
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"a process must return numbers, texts, lists, mappings or dataclasses, got {type(value).__name__}")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

"""The process that runs one function, call after call: a script of its own that imports nothing of the package.

`appo.workers.processes` starts it, tells it over a socket what to run, and kills it when a call takes too long. It ends
when its caller is gone.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

READY, VALUE, ERROR = "ready", "value", "error"
"""First word of every message to the caller."""
_GRACE_S = 5
"""Seconds beyond its limit after which a call ends the process, if no caller is left to do it."""


def serve(channel: Connection) -> None:
    """Answers calls until the other end is closed."""
    paths, target, memory_mb = pickle.loads(channel.recv_bytes())
    sys.path[:] = paths
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    try:
        function = load(target)
    except BaseException:  # noqa: BLE001  # the caller says what went wrong
        channel.send_bytes(pickle.dumps((ERROR, traceback.format_exc())))
        return
    channel.send_bytes(pickle.dumps((READY, None)))
    while True:
        try:
            timeout_s, message = pickle.loads(channel.recv_bytes())
        except (EOFError, ConnectionError):
            return
        # Not handled, so that it ends the process even in the middle of one long operation.
        signal.alarm(math.ceil(min(timeout_s, 2**30)) + _GRACE_S)
        channel.send_bytes(_answer(function, message))
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
        return pickle.dumps((VALUE, function(*arguments, **options)))
    except BaseException as error:  # noqa: BLE001  # what a call raises is the answer to that call
        return pickle.dumps((ERROR, f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))

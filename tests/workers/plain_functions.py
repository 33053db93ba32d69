"""Functions for processes, without anything that takes long to import."""

from __future__ import annotations

import os
import pickle
import re
import struct
import sys
from pathlib import Path


def repeat(text: str, times: int = 1) -> str:
    return text * times


def raises(text: str) -> str:
    raise KeyError(text)


def exits(text: str) -> str:
    raise SystemExit(3)


def dies(text: str) -> str:
    os._exit(3)


def backtracks(text: str) -> bool:
    """Holds the interpreter for ages unless the text ends with a; no thread could stop it."""
    return re.match(r"(a+)+$", text) is not None


def take_bytes(number: int) -> int:
    return len(bytes(number))


def process_id(text: str) -> int:
    return os.getpid()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


def speak(what: str, path: str) -> str:
    """Says something else to the caller than what it returns, as code would that has taken the process over."""
    messages = {
        "nothing": b"",
        "a pickle": pickle.dumps(("value", Touch(path))),
        "a text that is no answer": b'{"a": 1}',
        "nested JSON": b"[" * 100_000,
        "the half of an answer": b'["value", 1',
    }
    if message := messages.get(what):
        os.write(int(sys.argv[1]), struct.pack(">Q", len(message) + what.startswith("the half")) + message)
    elif what == "more than there is room for":
        os.write(int(sys.argv[1]), struct.pack(">Q", 2**60))
    if what == "the half of an answer":
        while True:
            pass
    return what


def several(text: str) -> list:
    return [1, True, None, 0.5, text, {"a": (1, 2)}]


def unspeakable(text: str) -> object:
    return object()

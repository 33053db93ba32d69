"""Functions for processes, without anything that takes long to import."""

from __future__ import annotations

import os
import re


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

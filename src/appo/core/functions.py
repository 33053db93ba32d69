"""Functions of the user's, by import path or as they are."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any


def as_function(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function, imported if it is given as ``package.module:name``.

    Raises:
        ValueError: if there is none, or it cannot be called from a thread.
    """
    shown = repr(function)
    if isinstance(function, str):
        module, colon, name = function.partition(":")
        if not (module and colon and name.isidentifier()):
            raise ValueError(f"function must have the form package.module:name, got {shown}")
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"function must be importable, got {shown} ({type(error).__name__}: {error})") from error
    if not callable(function) or isinstance(function, type) or inspect.iscoroutinefunction(function):
        raise ValueError(f"function must be callable, and neither a class nor a coroutine function, got {shown}")
    return function

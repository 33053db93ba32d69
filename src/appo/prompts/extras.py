"""Packages that only some sources need."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_extra(module: str, user: str) -> Any:
    """Imports a module of the optional dependencies `data`.

    Args:
        module: its full name.
        user: the component that needs it.

    Raises:
        ModuleNotFoundError: if it is not installed; says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f'{user} needs the package {package}, which is not installed: pip install "appo[data]"', name=package
        ) from error

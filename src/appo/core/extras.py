"""Packages that only some components need, and that extras of this one install."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


class MissingPackageError(ModuleNotFoundError, ValueError):
    """A configuration needs a package that is not installed; the text says how to install it."""


def import_extra(module: str, user: str, extra: str, hint: str = "") -> Any:
    """Imports a module of an optional package.

    Args:
        module: its full name.
        user: what needs it, in the user's words.
        extra: that installs it.
        hint: goes behind the command that installs it.

    Raises:
        MissingPackageError: if the package is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise _missing(package, user, extra, hint) from error


def require_extra(package: str, user: str, extra: str) -> None:
    """Makes sure that an optional package is installed, without importing it.

    Args:
        package: the name that it is imported by.
        user: what needs it, in the user's words.
        extra: that installs it.

    Raises:
        MissingPackageError: if it is not.
    """
    if find_spec(package) is None:
        raise _missing(package, user, extra)


def _missing(package: str, user: str, extra: str, hint: str = "") -> MissingPackageError:
    name = package.replace("_", "-")
    return MissingPackageError(
        f'{user} needs the package {name}, which is not installed: pip install "appo[{extra}]"{hint}', name=package
    )

"""The argument parser of every command: errors in a line, components that start with their own defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, _typehints

from appo.commands.errors import refuse


class AppoParser(ArgumentParser):
    """Says in a line what is wrong."""

    command = "appo"
    """What usage lines begin with, those of a component's help as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"prog": self.command, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        refuse(message, ex)


def _start_afresh(parser_or_action: Any, previous: Any, value: Any) -> None:
    """Another class in the place of a component begins with its own defaults.

    jsonargparse would hand on every option that both classes have, defaults of the former included: a `ClippedLoss` in
    the place of the `ProceduralLoss` would clip where that one does (https://github.com/mauvilsa/jsonargparse/issues/460).
    """
    if previous and previous.get("init_args") and previous["class_path"] != value["class_path"]:
        previous["init_args"] = type(previous)()


_typehints.discard_init_args_on_class_path_change = _start_afresh  # it has no setting for this


_rank_of: Callable[[Any], float] = _typehints.union_subtype_sort_key


def _numbers_of_things_first(subtype: Any) -> float:
    """Tries a whole number as one before it is tried as a float, whichever a union names first.

    Python has one union for ``int | float`` and ``float | int``, in the order in which some library has named it first.
    Lightning takes 1 for one batch, and 1.0 for all of them.
    """
    return _rank_of(subtype) - 0.5 * (subtype is int)


setattr(_typehints, _rank_of.__name__, _numbers_of_things_first)  # it has no setting for this either

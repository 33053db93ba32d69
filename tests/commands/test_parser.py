"""What we rely on in jsonargparse beyond its documented interface."""

from __future__ import annotations

from importlib.metadata import version

from jsonargparse import _typehints

from appo.commands import parser


def test_jsonargparse_calls_the_private_function_that_is_replaced():
    name = "discard_init_args_on_class_path_change"
    callers = (_typehints.adapt_class_type, _typehints.ActionTypeHint.discard_init_args_on_class_path_change)
    for caller in callers:
        assert name in caller.__code__.co_names, (
            f"jsonargparse {version('jsonargparse')} does not call _typehints.{name} in "
            f"{caller.__qualname__} any more: {parser.__name__} replaces it so that another class begins with its own "
            "defaults"
        )

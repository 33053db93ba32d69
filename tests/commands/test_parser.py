"""What we rely on in jsonargparse beyond its documented interface."""

from __future__ import annotations

from importlib.metadata import version

import pytest
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


def test_jsonargparse_calls_the_private_function_that_ranks_types():
    name = "union_subtype_sort_key"
    for caller in (_typehints.sort_unions_in_typehint, _typehints.sort_subtypes_for_union):
        assert name in caller.__code__.co_names, (
            f"jsonargparse {version('jsonargparse')} does not call _typehints.{name} in {caller.__qualname__} any "
            f"more: {parser.__name__} replaces it so that 1 is a whole number whatever order a union has"
        )


@pytest.mark.parametrize("annotation", [float | int | None, int | float, float | int | str | None], ids=str)
@pytest.mark.parametrize("text", ["1", "1.0", "0.5"])
def test_a_whole_number_stays_one_in_whichever_order_a_union_names_its_types(annotation, text):
    option = parser.AppoParser()
    # As in a process where another library has named the types first.
    option.add_argument("--number", type=annotation)
    number = option.parse_args([f"--number={text}"]).number
    assert repr(number) == text

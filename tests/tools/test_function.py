"""A typed function with a docstring is a tool."""

from __future__ import annotations

import json

import pytest

from appo.tools import FunctionTool, PythonTool, ToolRunner, as_tool
from tests.tools import functions

MODULE = "tests.tools.functions"


def answers(tool, *arguments):
    runner = ToolRunner([tool])
    runner.start()
    (name,) = runner.tools
    for key, argument in enumerate(arguments):
        runner.submit(key, name, argument)
    found = []
    while runner.num_in_flight:
        found += runner.finished(None)
    runner.stop()
    return [(answer.text, answer.failure) for answer in sorted(found, key=lambda answer: answer.key)]


def test_signature_and_docstring_tell_the_model_what_it_does_and_takes():
    assert FunctionTool(f"{MODULE}:convert").schema == {
        "type": "function",
        "function": {
            "name": "convert",
            "description": "Converts a length to meters.\n\nIt is exact.",
            "parameters": {
                "type": "object",
                "properties": {
                    "value": {"type": "number", "description": "how long it is."},
                    "unit": {"type": "string", "enum": ["km", "mile"], "description": "what it is measured in."},
                    "places": {"type": "integer", "description": "digits behind the point."},
                },
                "required": ["value", "unit"],
                "additionalProperties": False,
            },
        },
    }


def test_arguments_by_name_reach_the_function_and_are_checked():
    wrong = "Error: convert does not take such arguments: "
    assert answers(
        functions.convert,
        {"value": 2, "unit": "mile"},
        {"value": 2, "unit": "km", "places": 0},
        {"value": "2", "unit": "km"},
        {"value": 2},
        {"value": 2, "unit": "foot"},
        {"value": 2, "unit": "km", "digits": 1},
    ) == [
        ("3218.69 m", None),
        ("2000 m", None),
        (f"{wrong}'value': '2' is not of type 'number'", "invalid"),
        (f"{wrong.strip()} 'unit' is a required property", "invalid"),
        (f"{wrong}'unit': 'foot' is not one of ['km', 'mile']", "invalid"),
        (f"{wrong.strip()} Additional properties are not allowed ('digits' was unexpected)", "invalid"),
    ]


def test_without_names_one_text_is_taken_as_it_is_and_all_else_is_json():
    assert answers(functions.shout, "hear me") == [("HEAR ME!", None)]
    assert answers(functions.convert, '{"value": 1, "unit": "km"}') == [("1000.00 m", None)]
    (answer,) = answers(functions.convert, "1 km")
    assert answer[0].startswith("Error: the arguments of convert are no valid JSON")


def test_what_is_no_text_is_answered_as_json():
    ((text, _),) = answers(functions.count, {"texts": ["a b", "b é"]})
    assert json.loads(text) == {"a": 1, "b": 2, "é": 1}
    assert "é" in text


def test_a_tool_stays_what_it_is():
    tool = PythonTool()
    assert as_tool(tool) is tool


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (functions.without_docstring, "function must have a docstring and .*, got without_docstring: .* no docstring"),
        (functions.without_hint, "a type hint for every argument, got without_hint: Argument text is missing a type"),
        (functions.without_argument, "got without_argument: .* no description for the argument 'times'"),
        (functions.any_number, r"function must take every argument by name, got \*texts: 'str' of any_number"),
        (functions.later, "neither a class nor a coroutine function, got <function later"),
        (PythonTool, "neither a class nor a coroutine function, got <class"),
        (lambda text: text, "function must have a name that the model can write, got <function <lambda>"),
        (3, "function must be callable, .*, got 3"),
        ("convert", "function must have the form package.module:name, got 'convert'"),
        (f"{MODULE}:nothing", "function must be importable, got 'tests.tools.functions:nothing' .AttributeError"),
    ],
)
def test_what_cannot_be_described_is_refused_in_one_line(function, message):
    with pytest.raises(ValueError, match=message) as error:
        FunctionTool(function)
    assert "\n" not in str(error.value)


def test_the_time_limit_is_an_option():
    assert FunctionTool(functions.shout, timeout_s=3.0).timeout_s == 3.0
    with pytest.raises(ValueError, match="timeout_s must be positive and finite, got 0"):
        FunctionTool(functions.shout, timeout_s=0.0)

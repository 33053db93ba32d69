import pytest

from appo.tools import CALL_SYNTAXES, ChatTemplateSyntax, ParsedCall, PythonTool

TOOLS = ("python", "search")
END = "<|im_end|>"


def written(json: str) -> str:
    return f"<tool_call>\n{json}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (written('{"name": "python", "arguments": {"code": "1"}}'), [("python", {"code": "1"})]),
        ('<tool_call>{"arguments": {}, "name": "now"}</tool_call>', [("now", {})]),
        (
            "Both:"
            + written('{"name": "a", "arguments": {"x": 1}}')
            + "\n"
            + written('{"name": "b", "arguments": {}}'),
            [("a", {"x": 1}), ("b", {})],
        ),
        # Tags within a text of the JSON are part of it.
        (
            written('{"name": "a", "arguments": {"x": "</tool_call><tool_call>{}"}}'),
            [("a", {"x": "</tool_call><tool_call>{}"})],
        ),
        ("<think>" + written("{}") + "</think>" + written('{"name": "a", "arguments": {}}'), [("a", {})]),
        (written("{}") + "</think>" + written('{"name": "a", "arguments": {}}'), [("a", {})]),
        (written('{"name": "a", "arguments": {"x": "\\u00e9"}}') + " bye", [("a", {"x": "é"})]),
    ],
)
def test_all_calls_of_a_turn_are_found(text, calls):
    parsed = ChatTemplateSyntax().parse(text + END, TOOLS, 9)
    assert [(call.tool, dict(call.arguments)) for call in parsed] == calls
    assert {(call.end, call.error) for call in parsed} == {(len(text + END), None)}


def test_the_text_of_a_call_is_that_of_its_arguments():
    (call,) = ChatTemplateSyntax().parse(written('{"name": "a", "arguments":{"x":"é",  "y":[1]}}'), TOOLS, 9)
    assert call.argument == '{"x": "é", "y": [1]}'


@pytest.mark.parametrize(
    "text",
    ["", "2 < 3", "</tool_call>", "<think>" + written('{"name": "a", "arguments": {}}'), "<python>1</python>"],
)
def test_anything_else_is_no_call(text):
    assert ChatTemplateSyntax().parse(text + END, TOOLS, 9) == ()


@pytest.mark.parametrize(
    ("text", "argument", "error"),
    [
        (written("{'name': 1}"), "{'name': 1}", "no valid JSON: Expecting property name"),
        (written(""), "", "no valid JSON: Expecting value"),
        ("<tool_call>", "", "no valid JSON: Expecting value"),
        (written('{"name": "a", "arguments": {}'), '{"name": "a", "arguments": {}', "no valid JSON: Expecting ','"),
        (written('{"name": "a"}'), '{"name": "a"}', '"name" and an object "arguments"'),
        (written('{"name": "a", "arguments": "x"}'), '{"name": "a", "arguments": "x"}', 'an object "arguments"'),
        (written('{"name": 1, "arguments": {}}'), '{"name": 1, "arguments": {}}', 'a text "name"'),
        (written("[1]"), "[1]", "a JSON object"),
        (written('{"name": "a", "arguments": {}} and more'), '{"name": "a", "arguments": {}}', "behind it"),
        ('<tool_call>{"name": "a", "arguments": {}}', '{"name": "a", "arguments": {}}', "behind it"),
        (written("[" * 100_000), "[" * 1000, "no valid JSON: maximum recursion depth"),
        (written("1" * 5000), "1" * 1000, "no valid JSON: Exceeds the limit"),
        (
            written('{"name": "a", "arguments": {"x": "\\ud800"}}'),
            '{"name": "a", "arguments": {"x": "\\ud800"}}',
            "surrogate",
        ),
    ],
)
def test_what_is_wrong_with_a_call_is_told(text, argument, error):
    (call,) = ChatTemplateSyntax().parse(text, TOOLS, 9)
    assert error in call.error
    assert (call.tool, call.argument, call.arguments) == ("", argument, None)


def test_a_malformed_call_does_not_hide_the_next_one():
    text = "<tool_call>{oops</tool_call>" + written('{"name": "a", "arguments": {}}')
    assert [(call.tool, call.error is None) for call in ChatTemplateSyntax().parse(text, TOOLS, 9)] == [
        ("", False),
        ("a", True),
    ]


def test_other_tags_can_be_chosen():
    syntax = ChatTemplateSyntax(call_start="[CALL]", call_end="[/CALL]", thought_start="[T]", thought_end="[/T]")
    text = '[T][CALL]{}[/CALL][/T][CALL]{"name": "a", "arguments": {}}[/CALL]'
    assert syntax.parse(text, TOOLS, 9) == (ParsedCall("a", "{}", len(text), {}),)


def test_turns_end_by_themselves():
    assert ChatTemplateSyntax().stop_strings(TOOLS) == ()


def test_empty_tags_are_refused():
    with pytest.raises(ValueError, match="call_end must not be empty, got ''"):
        ChatTemplateSyntax(call_end="")


def test_a_tool_is_described_by_its_name_docstring_and_parameters():
    assert CALL_SYNTAXES["ChatTemplateSyntax"] is ChatTemplateSyntax
    function = PythonTool().schema["function"]
    assert function["name"] == "python"
    assert function["description"].startswith("Runs Python code as a notebook cell")
    assert "\n" not in function["description"]
    (parameter,) = function["parameters"]["properties"].values()
    assert parameter == {"type": "string"}
    assert function["parameters"]["required"] == [PythonTool.parameter_name]

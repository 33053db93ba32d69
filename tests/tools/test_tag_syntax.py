import pytest

from appo.tools import CALL_SYNTAXES, TOOLS, FunctionTool, ParsedCall, PythonTool, SearchTool, TagSyntax
from tests.tools.functions import shout

TOOL_NAMES = ("python", "search")


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("<python>1 + 1</python>", ("python", "1 + 1", 22)),
        ("I think.\n<search> who? </search>", ("search", "who?", 32)),
        ("<search></search>", ("search", "", 17)),
        ("<python>a</python><search>b</search>", ("python", "a", 18)),
        ("<search>b</search><python>a</python>", ("search", "b", 18)),
        ("<python>a</python><python>b</python>", ("python", "a", 18)),
        ("I use <python> now: <python>1</python>", ("python", "1", 38)),
        ("</python> <python>1</python>", ("python", "1", 28)),
        ("</search><python>1</python>", ("python", "1", 27)),
        ("<python>print('</search>')</python>", ("python", "print('</search>')", 35)),
        ("<search>x <python>1</python>", ("python", "1", 28)),
    ],
)
def test_first_complete_call_is_found(text, call):
    assert TagSyntax().parse(text, TOOL_NAMES, 9) == (ParsedCall(*call),)


@pytest.mark.parametrize(
    "text",
    ["", "2 < 3", "<python>1", "1</python>", "<python>1</search>", "</python><python>", "<b>ls</b>", "</>"],
)
def test_anything_else_is_no_call(text):
    assert TagSyntax().parse(text, TOOL_NAMES, 9) == ()


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("<search>a</search><python>1</python>", ("search", "a", 18)),
        ("<search> a </search> <answer>7</answer>", ("search", "a", 20)),
        ("<Python>1</Python>", ("Python", "1", 18)),
        ("<oracle>a</oracle>\n<result>\n5", ("oracle", "a", 18)),
        ("Is <python> of use? <search>a</search><python>1</python>", ("search", "a", 38)),
        ("<python>print('<search>a</search>')</python>", ("python", "print('<search>a</search>')", 44)),
    ],
)
def test_a_call_of_a_tool_that_there_is_not_is_a_call(text, call):
    assert TagSyntax().parse(text, ("python",), 9) == (ParsedCall(*call),)


@pytest.mark.parametrize(
    "text",
    [
        "<b>7</b> is <plan>a</plan>",
        "<think>a</think> <result>b</result>",
        "<answer>a</answer><result>",
        "<result>a</result> <result>b</result>",
        "<python>print('<search>a</search>",
        "search>a</search>",
    ],
)
def test_other_tags_call_nothing(text):
    assert TagSyntax().parse(text, ("python",), 9) == ()


def test_which_names_are_calls_is_a_matter_of_options():
    text = "<search>a</search><plan>b</plan>"
    assert TagSyntax(other_tools=()).parse(text, ("python",), 9) == ()
    assert TagSyntax(other_tools=("plan",)).parse(text, ("python",), 9) == (ParsedCall("plan", "b", len(text)),)


def test_tool_names_are_taken_literally():
    assert TagSyntax().parse("<cxx>1</cxx>", ("c..",), 9) == ()
    assert TagSyntax().parse("<c++>1</c++>", ("c++",), 9) == (ParsedCall("c++", "1", 12),)


def test_stop_strings_are_the_closing_tags():
    assert TagSyntax().stop_strings(TOOL_NAMES) == ("</python>", "</search>")


def test_result_is_wrapped_as_it_is():
    assert TagSyntax().format_result(r"{x} \1 {result}") == " <result>\n{x} \\1 {result}\n</result>"
    assert TagSyntax("[{result}]").format_result("3") == "[3]"


def test_result_format_without_a_place_for_the_result_is_refused():
    with pytest.raises(ValueError, match=r"result_format must contain \{result\}, got 'x'"):
        TagSyntax("x")


def test_components_are_registered_under_their_names():
    assert TOOLS["PythonTool"] is PythonTool
    assert TOOLS["SearchTool"] is SearchTool
    assert CALL_SYNTAXES["TagSyntax"] is TagSyntax


def double(number: int) -> int:
    """Doubles a number.

    Args:
        number: that is doubled.
    """
    return 2 * number


SCHEMAS = [FunctionTool(shout).schema, FunctionTool(double).schema]


def test_tools_are_described_as_they_are_called():
    told = TagSyntax().describe(SCHEMAS, "You are a mathematician.")
    text, other = told.splitlines()[-2:]
    assert "<result>\n...\n</result>" in told
    assert text.startswith("<shout>text</shout>: ")
    assert other.startswith(
        '<double>{"number": ...}</double>: Doubles a number. It takes a JSON object of the schema {'
    )
    assert '"that is doubled."' in other


def test_a_tool_that_a_prompt_names_is_not_described_again():
    syntax = TagSyntax(instructions="Tools: {tools}")
    assert "<shout>" not in syntax.describe(SCHEMAS, "Write <shout>hey</shout>.")
    assert syntax.describe(SCHEMAS, "Write <shout>hey</shout> or <double>{}</double>.") == ""
    assert TagSyntax(instructions=None).describe(SCHEMAS, "") == ""


def test_what_describes_a_tool_stands_as_it_is():
    schema = {"type": "function", "function": {"name": "x", "description": "{result} {tools}", "parameters": {}}}
    assert TagSyntax(instructions="{tools}|{result}").describe([schema], "").startswith("<x>{}</x>: {result} {tools}")


def test_instructions_name_the_tools():
    with pytest.raises(ValueError, match=r"instructions must contain \{tools\}, got 'Call them\.'"):
        TagSyntax(instructions="Call them.")

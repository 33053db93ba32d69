"""Conversations in the forms in which they are published, and rows that are none."""

from __future__ import annotations

import json

import pyarrow
import pytest
from pyarrow import parquet

from appo.core.trajectory import Segment
from appo.prompts import UnusableRow
from appo.sft import FileConversations
from tests.sft.small_source import write_jsonl

TOOL = {"name": "find", "parameters": {"type": "object"}}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}
ASKED = [("system", "s", []), ("user", "who", [])]
CALLED = [*ASKED, ("assistant", "", [CALL]), ("tool", "r", []), ("assistant", "Ada", [])]
TALK = [("user", "a", []), ("assistant", "b", [])]
GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def read(path, split="train", **options):
    """Role, content and calls of each message, and the tools, of every conversation."""
    conversations = FileConversations(str(path), **options).load(split)
    return [([(m.role, m.content, list(m.tool_calls)) for m in c.messages], list(c.tools)) for c in conversations]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        # ShareGPT, with calls as LLaMA-Factory has them.
        (
            {
                "system": "s",
                "tools": json.dumps([TOOL]),
                "conversations": [
                    {"from": "human", "value": "who"},
                    {"from": "function_call", "value": json.dumps(CALL["function"])},
                    {"from": "observation", "value": "r"},
                    {"from": "gpt", "value": "Ada"},
                ],
            },
            CALLED,
        ),
        # Services that chat, with arguments as JSON text and content in parts.
        (
            {
                "tools": [{"type": "function", "function": TOOL}],
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "wh"}, {"type": "text", "text": "o"}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "1", "function": {"name": "find", "arguments": '{"q": "x"}'}}],
                    },
                    {"role": "tool", "tool_call_id": "1", "content": "r"},
                    {"role": "assistant", "content": "Ada"},
                ],
            },
            CALLED,
        ),
        ({"instruction": "who", "input": "now", "output": "Ada", "system": ""}, [("user", "who\nnow", []), CALLED[-1]]),
        (
            {"instruction": "who", "input": "", "output": "Ada", "history": [["a", "b"]], "system": "s"},
            [ASKED[0], *TALK, ASKED[1], CALLED[-1]],
        ),
        ({"prompt": "a", "response": "b", "input": "no part of it"}, TALK),
        ({"prompt": GOOD["messages"][:1], "completion": GOOD["messages"][1:]}, TALK),
        (
            {"messages": [{"role": "assistant", "content": "b", "reasoning_content": "t"}]},
            [("assistant", "<think>\nt\n</think>\n\nb", [])],
        ),
    ],
)
def test_a_row_is_read_in_each_form(tmp_path, row, messages):
    ((found, tools),) = read(write_jsonl(tmp_path / "a.jsonl", row))
    assert found == messages
    assert tools == ([{"type": "function", "function": TOOL}] if "tools" in row else [])


def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path):
    calls = [{"function": {"name": "find", "arguments": {"q": "x"}}}]
    other = [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]
    rows = [
        {"messages": [*GOOD["messages"], {"role": "assistant", "content": "c", "tool_calls": made}]}
        for made in (calls, other)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", *rows)
    expected = read(path)
    assert expected[0][0][-1] == ("assistant", "c", [CALL])
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    # A table gives both calls all of the arguments, those of the other one without a value.
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert all(read(tmp_path / name) == expected for name in ("a.json", "lines.json", "a.parquet"))
    both = FileConversations((path, str(tmp_path / "a.parquet"))).load("train")
    assert [(c.origin.rpartition(".")[2], c.row) for c in both] == [
        ("jsonl", 1), ("jsonl", 2), ("parquet", 0), ("parquet", 1)
    ]  # fmt: skip


def test_keys_of_a_pair_can_be_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"question": "a", "combined_text": "b", "output": "c"})
    assert read(path, pair_keys=("question", "combined_text")) == [(TALK, [])]


def test_tool_output_is_told_apart_with_the_space_before_it(tmp_path):
    answer = "<python> 1+1 </python>\n<result>\n2\n</result><answer> 2 </answer>"
    messages = [{"from": "human", "value": "1+1 <result>x</result>"}, {"from": "gpt", "value": answer}]
    path = write_jsonl(tmp_path / "a.jsonl", {"conversations": messages})
    (conversation,) = FileConversations(path).load("train")
    assert [m.content for m in conversation.messages] == [m["value"] for m in messages]
    assert conversation.messages[0].segments == (Segment(messages[0]["value"], False),)
    assert [(s.text, s.is_generated) for s in conversation.messages[1].segments] == [
        ("<python> 1+1 </python>", True),
        ("\n<result>\n2\n</result>", False),
        ("<answer> 2 </answer>", True),
    ]
    assert FileConversations(path).load("validation") == []
    (whole,) = FileConversations(path, tool_output="").load("train")
    assert whole.messages[1].segments == (Segment(answer, True),)


def reply(**message):
    return {"messages": [{"role": "assistant", **message}]}


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ("{", "unreadable", r"must be a JSON object"),
        ([], "unreadable", r"must be a JSON object, got \[\]"),
        ({"text": "a"}, "unreadable", "must have one of messages, conversations, instruction with .* keys text"),
        ({"messages": {"a": 1}}, "unreadable", "must have `messages`, a list of messages"),
        ({"messages": ["a"]}, "unreadable", 'must be an object, got "a"'),
        ({"conversations": [{"from": "bing", "value": "a"}]}, "unreadable", "role or `from` of human, .* got \"bing\""),
        (reply(content=[{"type": "image"}]), "unreadable", "must have a text as its content"),
        ({"messages": GOOD["messages"][:1]}, "no_response", "must have a message of the assistant, got none"),
        (reply(content=" "), "no_response", "message 0 in line 2 of .* must have a text or `tool_calls`, got neither"),
        (reply(tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), "unreadable", "an object `arguments`"),
        (reply(content="<result>r</result>", tool_calls=[CALL]), "unreadable", "its calls in its text or in"),
        ({"conversations": [{"from": "function_call", "value": "f(x)"}]}, "unreadable", "the JSON of a call"),
        ({**GOOD, "tools": "no JSON"}, "unreadable", "`tools` in line 2 of .* must be the JSON of a list of tools"),
        ({**GOOD, "tools": ["a"]}, "unreadable", "must have `tools`, a list of objects"),
        ({"prompt": "a", "response": "b", "history": ["a"]}, "unreadable", "must have `history`, a list of pairs"),
        (reply(content="\udc00"), "unreadable", "got half of a surrogate pair"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_conversation_is_unusable_with_its_number_and_reason(tmp_path, row, reason, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{row if isinstance(row, str) else json.dumps(row)}\n{json.dumps(GOOD)}\n")
    first, bad, last = FileConversations(str(path)).rows("train")
    assert (first.row, last.row) == (1, 3)
    assert isinstance(bad, UnusableRow)
    assert (bad.row, bad.reason) == (2, reason)
    with pytest.raises(ValueError, match=message):
        FileConversations(str(path)).load("train")


def test_files_that_are_none_and_a_bad_pattern_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train must name a file, got 'nowhere\.jsonl', which is none"):
        FileConversations("nowhere.jsonl").load("train")
    path = write_jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="validation must be files with one conversation at least, got none"):
        FileConversations("nowhere.jsonl", validation=path).load("validation")
    with pytest.raises(ValueError, match=r"tool_output must be a regular expression, got '\('"):
        FileConversations(path, tool_output="(")
    text = tmp_path / "a.txt"
    text.write_text("a")
    with pytest.raises(ValueError, match=r"train must name files that end in \.json, \.jsonl or \.parquet"):
        FileConversations(str(text)).load("train")

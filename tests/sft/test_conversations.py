from __future__ import annotations

import pytest

from appo.core.trajectory import Segment
from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.problems import WorldProblems
from appo.environments.world import World
from appo.sft import JsonlConversations, WorldConversations
from tests.sft.small_source import write_jsonl


def test_conversations_of_a_file_are_read_with_tool_output_told_apart(tmp_path):
    answer = "<python> 1+1 </python> <result>\n2\n</result><answer> 2 </answer>"
    messages = [{"role": "user", "content": "1+1 <result>x</result>"}, {"role": "assistant", "content": answer}]
    path = write_jsonl(tmp_path / "a.jsonl", {"messages": messages})
    (conversation,) = JsonlConversations(path).load("train")
    assert [m.content for m in conversation.messages] == [m["content"] for m in messages]
    assert [(s.text, s.is_generated) for s in conversation.messages[1].segments] == [
        ("<python> 1+1 </python>", True),
        (" <result>\n2\n</result>", False),
        ("<answer> 2 </answer>", True),
    ]
    assert JsonlConversations(path).load("validation") == []
    (whole,) = JsonlConversations(path, tool_output="").load("train")
    assert whole.messages[1].segments == (Segment(answer, True),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.jsonl:2 must be a JSON object, got '\{'"),
        ("[]", "a.jsonl:2 must have `messages`"),
        ('{"messages": [{"role": "user"}]}', "a.jsonl:2 must have `messages`"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "a.jsonl:2 must have a message with the role `assistant`"),
    ],
)
def test_a_line_that_is_no_conversation_is_refused_with_its_place(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n' + line)
    with pytest.raises(ValueError, match=message):
        JsonlConversations(str(path)).load("train")


def test_a_missing_file_an_empty_file_and_a_bad_pattern_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train must be a file of conversations, got 'nowhere\.jsonl'"):
        JsonlConversations("nowhere.jsonl").load("train")
    path = write_jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="validation must be a file with one conversation at least, got none"):
        JsonlConversations("nowhere.jsonl", validation=path).load("validation")
    with pytest.raises(ValueError, match=r"tool_output must be a regular expression, got '\('"):
        JsonlConversations(path, tool_output="(")


def test_a_world_of_another_seed_is_another_source():
    other = WorldConversations(WorldDemonstrations(WorldProblems(world=World(seed=1), num_train=8)))
    with pytest.raises(ValueError, match="search must answer"):
        other.load("train")

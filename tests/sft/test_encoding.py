from __future__ import annotations

import pytest

from appo.policy.loading import load_tokenizer
from appo.sft import Conversation, FileConversations
from appo.sft.encoding import ConversationEncoder
from tests.sft.small_source import said, write_jsonl


def test_what_the_assistant_wrote_is_marked_and_tool_output_is_not(tokenizer):
    call, result, answer = "<search> a </search>", " <result>\nb\n</result>", "<answer> b </answer>"
    (example,) = ConversationEncoder(tokenizer)(
        [Conversation((said("user", "who"), said("assistant", call, result, answer)))]
    )
    pieces = [("<|user|>who<|end|><|assistant|>", 0), (call, 1), (result, 0), (answer + "<|end|>", 1)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in pieces]
    assert example.token_ids == tuple(i for piece in ids for i in piece)
    assert example.is_written == tuple(
        bool(written) for piece, (_, written) in zip(ids, pieces, strict=True) for _ in piece
    )


def test_every_turn_of_a_longer_conversation_is_written_in_one_row(tokenizer):
    conversation = Conversation((said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")))
    (example,) = ConversationEncoder(tokenizer)([conversation])
    text = [t for t, written in zip(example.token_ids, example.is_written, strict=True) if written]
    assert tokenizer.decode(text) == "b<|end|>d<|end|>"
    assert (
        tokenizer.decode(example.token_ids)
        == "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>d<|end|>"
    )


def test_a_template_that_drops_earlier_thoughts_gives_a_row_for_each_form(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    turns = (
        said("user", "a"),
        said("assistant", "<think>t</think>b"),
        said("user", "c"),
        said("assistant", "<think>u</think>d"),
    )
    first, second = ConversationEncoder(tokenizer)([Conversation(turns)])
    assert tokenizer.decode(first.token_ids) == "<|user|>a<|end|><|assistant|><think>t</think>b<|end|>"
    written = [t for t, w in zip(second.token_ids, second.is_written, strict=True) if w]
    assert tokenizer.decode(written) == "<think>u</think>d<|end|>"
    assert "t</think>" not in tokenizer.decode(second.token_ids)


def test_nothing_behind_the_end_token_counts_as_written(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    (example,) = ConversationEncoder(tokenizer)([Conversation((said("user", "a"), said("assistant", "b")))])
    written = [t for t, w in zip(example.token_ids, example.is_written, strict=True) if w]
    assert tokenizer.decode(written) == "b<|end|>"


THINKING = (
    "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments.q }}]{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{{ opening }}{% endif %}"
)


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_a_message_with_tool_output_is_learned_to_the_letter(folder, opening):
    """Templates take what stands before the last thought for one thought, and lose calls and results in it."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = THINKING
    parts = ("<think>\nt</think><search>q</search>", " <result>r</result>", "<think>u</think>b")
    conversation = Conversation((said("user", "a"), said("assistant", *parts)))
    (example,) = ConversationEncoder(tokenizer, {"opening": opening})([conversation])
    assert tokenizer.decode(example.token_ids) == f"<|user|>a<|end|><|assistant|>{''.join(parts)}<|end|>"
    written = [t for t, own in zip(example.token_ids, example.is_written, strict=True) if own]
    assert tokenizer.decode(written) == f"{parts[0].removeprefix(opening)}{parts[2]}<|end|>"


@pytest.mark.parametrize("opening", ["<think>", "<think>\n"])
@pytest.mark.parametrize("content", ["<think>\nt</think>\n\nb", "t</think>\n\nb"])
def test_a_thought_that_the_template_opens_is_not_written_and_what_follows_is(folder, opening, content):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = THINKING
    conversation = Conversation((said("user", "a"), said("assistant", content)))
    (example,) = ConversationEncoder(tokenizer, {"opening": opening})([conversation])
    start = "\n" if opening == "<think>" and content.startswith("<think>") else ""
    assert tokenizer.decode(example.token_ids) == f"<|user|>a<|end|><|assistant|>{opening}{start}t</think>\n\nb<|end|>"
    written = [t for t, own in zip(example.token_ids, example.is_written, strict=True) if own]
    assert tokenizer.decode(written) == f"{start}t</think>\n\nb<|end|>"


def test_a_message_that_does_not_close_the_thought_is_refused(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = THINKING
    with pytest.raises(ValueError, match="must close the thought that the chat template opens with '<think>'"):
        ConversationEncoder(tokenizer, {"opening": "<think>"})(
            [Conversation((said("user", "a"), said("assistant", "b")))]
        )


def test_calls_and_tools_of_a_row_are_in_what_is_learned(folder, tmp_path):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = THINKING
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "b"},
    ]
    tools = [{"type": "function", "function": {"name": "find"}}]
    path = write_jsonl(tmp_path / "c.jsonl", {"messages": messages, "tools": tools})
    (example,) = ConversationEncoder(tokenizer)(FileConversations(path).load("train"))
    text = "find<|user|>a<|end|><|assistant|>[find x]<|end|><|tool|>r<|end|><|assistant|>b<|end|>"
    assert tokenizer.decode(example.token_ids) == text
    written = [t for t, own in zip(example.token_ids, example.is_written, strict=True) if own]
    assert tokenizer.decode(written) == "[find x]<|end|>b<|end|>"
    (told,) = ConversationEncoder(tokenizer, tool_schemas=tools)(
        FileConversations(write_jsonl(tmp_path / "d.jsonl", {"messages": messages})).load("train")
    )
    assert told == example


def test_a_template_that_leaves_tools_out_or_raises_is_told(folder):
    tokenizer = load_tokenizer(str(folder))
    conversation = Conversation((said("user", "a"), said("assistant", "b")), ({"function": {"name": "find"}},))
    with pytest.raises(ValueError, match="must take `tools` for a conversation with tools, got one that leaves them"):
        ConversationEncoder(tokenizer)([conversation])
    with pytest.raises(ValueError, match=r"must take `tools` for data\.tool_schemas, got one that leaves them out"):
        ConversationEncoder(tokenizer, tool_schemas=conversation.tools)
    tokenizer.chat_template = "{{ raise_exception('one turn, please') }}"
    with pytest.raises(ValueError, match="must take a conversation of assistant, user, it says: one turn, please"):
        ConversationEncoder(tokenizer)([Conversation(conversation.messages)])

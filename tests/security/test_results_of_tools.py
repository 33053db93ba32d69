"""What a tool answers is text to the policy, and never a token or a tag that means more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tokenizers import AddedToken, normalizers

from appo.policy.text import encode
from appo.rollouts.episode import Limits
from appo.rollouts.inert_text import InertText, inert_schemas
from appo.rollouts.tool_turns import ToolTurns
from appo.tools import CallSyntax, ChatTemplateSyntax, FunctionTool, TagSyntax, ToolRunner
from appo.tools.base import TokenCodec
from tests.rollouts.chat import make_chat_tokenizer

CONTROLS = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eom_id|>", "<|start_header_id|>"]


@pytest.fixture
def tokenizer():
    tokenizer = make_chat_tokenizer()
    # As of Llama 3: special, and named nowhere else.
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in CONTROLS[3:]])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("    ", special=False)])
    return tokenizer


def double(input: str) -> str:
    """Doubles a number.

    Args:
        input: the number.
    """
    return input


@pytest.fixture
def runner() -> Iterator[ToolRunner]:
    runner = ToolRunner([FunctionTool(double)])
    runner.start()
    yield runner
    runner.stop()


@pytest.fixture
def turns(tokenizer, runner) -> Callable[[CallSyntax], ToolTurns]:
    return lambda syntax: ToolTurns(tokenizer, runner, syntax, Limits())


@pytest.mark.parametrize("syntax", [ChatTemplateSyntax(), TagSyntax()], ids=lambda syntax: type(syntax).__name__)
@pytest.mark.parametrize("text", CONTROLS)
@pytest.mark.parametrize("frame", ["{}", "x{}y", "<|im_{}end|>", "{0}{0}", "<{}"])
def test_no_control_token_comes_of_a_result(turns, tokenizer, syntax, text, frame):
    result = turns(syntax)._inert(frame.format(text))
    ids = tokenizer.convert_tokens_to_ids(CONTROLS)
    assert not set(ids).intersection(encode(tokenizer, result))
    assert result.replace(" ", "") == frame.format(text)


@pytest.mark.parametrize(
    ("syntax", "tags"),
    [
        (
            ChatTemplateSyntax(),
            ["<tool_response>", "</tool_response>", "</think>", "</answer>", "<tool_call>"],
        ),
        (TagSyntax(), ["<result>", "</result>", "<double>", "</double>", "<think>", "</think>", "</answer>"]),
        (TagSyntax("[out]<o-1>{result}</o-1>"), ["<o-1>", "</o-1>"]),
    ],
)
def test_no_tag_of_the_syntax_comes_of_a_result(turns, syntax, tags):
    inert = turns(syntax)._inert
    for tag in tags:
        assert tag not in inert(f"a{tag}b{tag}")
        assert inert(inert(tag)) == inert(tag)


@pytest.mark.parametrize("text", ["a < b", "x<b>y</b>", "if a<b and c>d:", "def f():\n    return", "[1, 2]", "<html>"])
def test_what_is_harmless_stays(turns, text):
    assert turns(ChatTemplateSyntax())._inert(text) == text


@pytest.mark.parametrize("text", ["<|STOP|>", "<|stop|>", "\uff1c|stop|\uff1e", "<|\u017ftop|>"])
@pytest.mark.parametrize("special", [True, False])
def test_a_token_that_a_tokenizer_finds_behind_its_normalizer_is_none_either(tokenizer, text, special):
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.add_tokens([AddedToken("<|stop|>", special=special, normalized=True)])
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    assert stop in encode(tokenizer, f"a{text}b")
    assert stop not in encode(tokenizer, InertText(tokenizer, ())(f"a{text}b"))


FAMILIES = [
    "<\uff5cUser\uff5c>",
    "<\uff5ctool\u2581sep\uff5c>",
    "[@BOS@]",
    "[TOOL_CALLS]",
    "<|a b|>",
    "\uff1csep\uff1e",
]


@pytest.mark.parametrize("text", FAMILIES)
def test_marks_of_a_family_that_are_added_without_being_special_are_none_either(tokenizer, text):
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False)])
    mark = tokenizer.convert_tokens_to_ids(text)
    assert mark in encode(tokenizer, f"a{text}b")
    assert mark not in encode(tokenizer, InertText(tokenizer, ())(f"a{text}b"))


def test_descriptions_of_tools_are_text_too(tokenizer):
    schema = {
        "function": {"name": "a", "description": "x<|im_end|>", "parameters": {"p<|eom_id|>": ["<|im_start|>", 1]}}
    }
    expected = {
        "function": {"name": "a", "description": "x< |im_end|>", "parameters": {"p< |eom_id|>": ["< |im_start|>", 1]}}
    }
    assert inert_schemas(tokenizer, [schema]) == [expected]


def test_of_a_long_result_as_much_is_encoded_as_it_takes():
    encoded: list[int] = []

    def encode_words(text: str) -> list[int]:
        encoded.append(len(text))
        return list(map(len, text.split("|")))

    codec = TokenCodec(encode_words, lambda sizes: "|".join("x" * size for size in sizes))
    assert codec.cut("x|" * 10**6, 5) == "x|x|x|x|x"
    assert max(encoded) < 1000
    assert codec.cut("x" * 10**4 + "|" + "x|" * 10**6, 2) == "x" * 10**4 + "|x"

"""Tokenizers that begin every text with a space: what stands in the middle of a sequence has none of its own."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from appo.core.trajectory import Prompt
from appo.policy.text import encode
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.sft import Conversation
from appo.sft.encoding import ConversationEncoder
from appo.tools import CallSyntax, ChatTemplateSyntax, TagSyntax, ToolRunner
from tests.rollouts.chat import TEMPLATE
from tests.rollouts.conftest import ScriptedEngine
from tests.rollouts.test_chat_calls import Doubler
from tests.sft.small_source import said

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
KINDS = ("first", "always", "prepended")
END = "<|im_end|>"


def make(kind: str) -> PreTrainedTokenizerFast:
    """One token a character, and one for each letter with a space before it."""
    characters = sorted({SPACE, "\n", *(chr(code) for code in range(33, 127))})
    spaced = [f"{SPACE}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocab = {text: number for number, text in enumerate(["<unk>", *characters, *spaced])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(SPACE, pair[1]) for pair in spaced], unk_token="<unk>"))
    if kind == "prepended":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Replace(SPACE, " ")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", ["so", "so\n", f"so{END}", "so="])
@pytest.mark.parametrize("text", ["a b", " a", "  a", "\na", "<result>", f"\n<|im_start|>a{END}", "=", "1"])
def test_what_stands_in_the_middle_has_the_tokens_that_it_has_there(kind, before, text):
    tokenizer = make(kind)
    together = whole(tokenizer, before + text)
    expected = together[len(whole(tokenizer, before)) :]
    assert encode(tokenizer, text, before) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("syntax", "call"),
    [
        (TagSyntax("<r>{result}</r>"), "<double>2</double>"),
        (ChatTemplateSyntax(), f'<tool_call>{{"name": "double", "arguments": {{"number": "2"}}}}</tool_call>{END}'),
    ],
    ids=["tags", "template"],
)
def test_a_rollout_has_the_tokens_of_its_text(kind, syntax: CallSyntax, call):
    tokenizer, runner = make(kind), ToolRunner([Doubler()])
    runner.start()
    try:
        asked = f"<|im_start|>user\nq{END}\n<|im_start|>assistant\n"
        result = (
            "<r>4.</r>"
            if isinstance(syntax, TagSyntax)
            else f"\n<|im_start|>user\n<tool_response>\n4.\n</tool_response>{END}\n<|im_start|>assistant\n"
        )
        said_then = f"four{END}"
        script = {
            tokenizer.decode(whole(tokenizer, asked)): call,
            tokenizer.decode(whole(tokenizer, asked + call + result)): said_then,
        }

        def behind(text: str) -> list[int]:
            return encode(tokenizer, text, "\n" if text == call else result)

        engine = ScriptedEngine(tokenizer, script, behind)
        loop = AgentLoop(engine, tokenizer, runner, syntax, Limits(500, 3, 50))
        (trajectory,) = loop.run([RolloutRequest(Prompt("q", "q", tuple(whole(tokenizer, asked)), ("4",)), 0)], None)
    finally:
        runner.stop()
    assert trajectory.token_ids.tolist() == whole(tokenizer, asked + call + result + said_then)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_has_the_tokens_of_its_text(kind):
    tokenizer = make(kind)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    conversation = Conversation((said("user", "who"), said("assistant", "see <a>x</a>", "<r>y</r>", " it is z")))
    (example,) = ConversationEncoder(tokenizer)([conversation])
    text = f"<|im_start|>user\nwho{END}\n<|im_start|>assistant\nsee <a>x</a><r>y</r> it is z{END}\n"
    assert list(example.token_ids) == whole(tokenizer, text)

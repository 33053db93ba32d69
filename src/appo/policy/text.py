"""Between text and token ids."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

_ASKED, _SAID = (f"\N{END OF TRANSMISSION BLOCK}{word}\N{END OF TRANSMISSION BLOCK}" for word in ("asked", "said"))
"""Stand for question and reply in a rendered conversation."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How tokenizers of the SentencePiece family write a space."""

_NEIGHBORS = ("\n", "=", "x", "1")
"""Texts that stand before another one while it is encoded, of which one at least should not fuse with it."""

_TAG = re.compile(r"</?[A-Za-z_][\w-]*>")


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Decodes token ids to text, special tokens included."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def encode(tokenizer: PreTrainedTokenizerBase, text: str, before: str = "") -> list[int]:
    """Encodes a text that stands in the middle of a sequence: without special tokens around it.

    Args:
        tokenizer: of the policy.
        text: to encode.
        before: what stands before it, special tokens included.
    """
    return in_the_middle(tokenizer, tokenizer.encode(text, add_special_tokens=False), text, before)


def in_the_middle(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], text: str, before: str) -> list[int]:
    """The tokens of a text without the space that is not its own.

    Tokenizers of the SentencePiece family begin every text with a space. The middle of a sequence has none, unless they
    put it behind special tokens, too.

    Args:
        tokenizer: of the policy.
        token_ids: of the text by itself.
        text: they stand for.
        before: what stands before it, special tokens included.
    """
    if not token_ids or not str(tokenizer.convert_ids_to_tokens(token_ids[0])).startswith(_SPACE):
        return list(token_ids)
    special = next((token for token in tokenizer.all_special_tokens if before.endswith(token)), None)
    for neighbor in _NEIGHBORS if special is None else (special,):
        own = list(tokenizer.encode(neighbor, add_special_tokens=False))
        together = list(tokenizer.encode(neighbor + text, add_special_tokens=False))
        if together[: len(own)] == own:
            return together[len(own) :]
    return list(token_ids)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template puts behind an assistant's message; empty without a template, or one that refuses it."""
    return _around_messages(tokenizer)[2]


def turn_end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an assistant's message in the chat template.

    It need not be the tokenizer's end token: a base model that was given a template often keeps its own. None if the
    template ends messages with plain text, or with nothing.
    """
    added: Collection[int] = tokenizer.added_tokens_decoder
    return next((token for token in encode(tokenizer, turn_end(tokenizer)) if token in added), None)


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end what an assistant says: the tokenizer's end token and that of the chat template."""
    return frozenset(token for token in (tokenizer.eos_token_id, turn_end_id(tokenizer)) if isinstance(token, int))


def framing_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that stand around texts and never are part of one: beginning, end, padding, marks of who speaks.

    Other special tokens may spell what a text is made of, such as the tags of thoughts and answers.
    """
    named = {tokenizer.convert_tokens_to_ids(token) for token in tokenizer.special_tokens_map.values()}
    of_user, of_assistant, _ = _around_messages(tokenizer)
    special = set(tokenizer.all_special_ids)
    marks = special.intersection(encode(tokenizer, of_user))
    # A template may open a thought for the assistant, or show an empty one.
    marks |= {
        token
        for token in special.intersection(encode(tokenizer, of_assistant))
        if not _TAG.fullmatch(decode(tokenizer, [token]))
    }
    return frozenset(token for token in {*named, *marks, turn_end_id(tokenizer)} if isinstance(token, int))


def _around_messages(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """What the chat template puts before a question, between question and reply, and behind the reply."""
    if tokenizer.chat_template is None:
        return "", "", ""
    messages = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except jinja2.TemplateError:
        return "", "", ""
    assert isinstance(text, str)
    before, _, rest = text.partition(_ASKED)
    between, _, behind = rest.partition(_SAID)
    return before, between, behind

"""Conversations as token ids, cut where rollouts cut them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from appo.policy.text import end_ids, in_the_middle
from appo.sft.conversations import Conversation, Message

_OPENING = re.compile(r"<think>\s*\Z")
_THOUGHT_END = "</think>"


@dataclass(frozen=True)
class Example:
    """One row to learn from.

    Attributes:
        token_ids: `T` ids.
        is_written: for each id, whether the assistant wrote it.
    """

    token_ids: tuple[int, ...]
    is_written: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class _Piece:
    """A stretch of text that is tokenized on its own: in a rollout, another side goes on behind it."""

    text: str
    is_written: bool


def encode(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    template_options: Mapping[str, Any] | None = None,
) -> list[Example]:
    """Renders and tokenizes conversations.

    Prompts, what the assistant writes, and tool output are tokenized apart from one another, as they are in a rollout.
    A conversation gives one row; where the chat template drops earlier text as the conversation goes on, it gives one
    row for each form it takes. What the template opens for the assistant, such as a thought, the assistant has not
    written.

    Args:
        conversations: with descriptions of their tools.
        tokenizer: of the policy.
        template_options: further variables of the chat template; the same as in the prompts of a rollout.

    Raises:
        ValueError: if the chat template changes what an assistant says, or what stands before it.
    """
    rows = [row for conversation in conversations for row in _rows(conversation, tokenizer, template_options or {})]
    if not rows:  # a tokenizer refuses to encode no text at all
        return []
    ends = end_ids(tokenizer)
    texts = [piece.text for row in rows for piece in row]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [_example(list(_in_place(row, encoded, tokenizer)), ends) for row in rows]


def _in_place(
    row: Sequence[_Piece], encoded: Iterator[list[int]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], bool]]:
    """The tokens of each piece: the first begins the sequence, each other one stands behind the one before it."""
    before = ""
    for piece, token_ids in zip(row, encoded, strict=False):
        yield in_the_middle(tokenizer, token_ids, piece.text, before) if before else token_ids, piece.is_written
        before = piece.text


def _rows(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> Iterator[list[_Piece]]:
    row: list[_Piece] = []
    rendered = ""
    tools = [dict(tool) for tool in conversation.tools] or None

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = tokenizer.apply_chat_template(
            list(map(_plain, messages)),
            tools=tools,  # type: ignore[arg-type]  # a list of dicts is one of dicts and functions
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **options,
        )
        assert isinstance(text, str)
        return text

    for i, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        before = render(conversation.messages[:i], add_generation_prompt=True)
        after = render(conversation.messages[: i + 1], add_generation_prompt=False)
        if not after.startswith(before):
            after = _reopened(before, after, message)
        if not after.startswith(before):
            raise ValueError(
                "the chat template must begin an assistant's message with its generation prompt, got "
                f"{after[-200:]!r} behind {before[-200:]!r}"
            )
        if not before.startswith(rendered):
            yield row
            row, rendered = [], ""
        row.append(_Piece(before[len(rendered) :], is_written=False))
        row += _split(after[len(before) :], message)
        rendered = after
    yield row


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        plain["tool_calls"] = [dict(call) for call in message.tool_calls]
    return plain


def _reopened(before: str, after: str, message: Message) -> str:
    """A rendered message behind a generation prompt that opens a thought, whose thought the template leaves out.

    Args:
        before: the conversation up to the message, with the generation prompt.
        after: the conversation with the message.
        message: by the assistant.

    Raises:
        ValueError: if the message does not close the thought that the template opens.
    """
    opening = _OPENING.search(before)
    if opening is None or not after.startswith(before[: opening.start()]):
        return after
    if _THOUGHT_END not in message.content:
        raise ValueError(
            f"an assistant's message must close the thought that the chat template opens with {opening[0]!r}, by "
            f"{_THOUGHT_END}, got {message.content[:80]!r}"
        )
    shown = after[opening.start() :]
    thought, _, spoken = message.content.rpartition(_THOUGHT_END)
    if _THOUGHT_END in shown:
        thought, _, spoken = shown.rpartition(_THOUGHT_END)
    else:
        start = shown.find(spoken.strip())
        spoken = spoken[: len(spoken) - len(spoken.lstrip())] + shown[start:] if start >= 0 else shown
    written = thought.lstrip().removeprefix(opening[0].strip())
    return before + written.lstrip("\n" if opening[0].endswith("\n") else "") + _THOUGHT_END + spoken


def _split(rendered: str, message: Message) -> Iterator[_Piece]:
    """Finds tool output in an assistant's rendered message; all else is written."""
    start = 0
    for segment in message.segments:
        if segment.is_generated:
            continue
        found = rendered.find(segment.text, start)
        if found < 0:
            raise ValueError(
                f"the chat template must keep tool output as it is, got {rendered[:200]!r} for {segment.text[:200]!r}"
            )
        if found > start:
            yield _Piece(rendered[start:found], is_written=True)
        yield _Piece(segment.text, is_written=False)
        start = found + len(segment.text)
    if start < len(rendered):
        yield _Piece(rendered[start:], is_written=True)


def _example(pieces: list[tuple[list[int], bool]], ends: frozenset[int]) -> Example:
    token_ids: list[int] = []
    is_written: list[bool] = []
    for ids, written in pieces:
        # A template may go on behind the end token; a policy never does.
        own = next((i for i, token in enumerate(ids, 1) if token in ends), len(ids)) if written else 0
        token_ids += ids
        is_written += [True] * own + [False] * (len(ids) - own)
    return Example(tuple(token_ids), tuple(is_written))

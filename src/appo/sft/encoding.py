"""Conversations as token ids, cut where rollouts cut them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from appo.policy.text import end_ids, in_the_middle, turn_end
from appo.prompts.chat import takes_tools, tools_left_out
from appo.sft.conversations import Conversation, Message

_OPENING = re.compile(r"<think>\s*\Z")
_THOUGHT_END = "</think>"
_PROBE = {"type": "function", "function": {"name": "probe", "description": "?", "parameters": {"type": "object"}}}
"""A tool that every template which takes tools shows."""


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
class Piece:
    """A stretch of text that is tokenized on its own: in a rollout, another side goes on behind it."""

    text: str
    is_written: bool


Rendered = list[Piece]
"""The text of a row."""


class ConversationEncoder:
    """Renders and tokenizes conversations.

    Prompts, what the assistant writes, and tool output are tokenized apart from one another, as they are in a rollout.
    A conversation gives one row; where the chat template drops earlier text as the conversation goes on, it gives one
    row for each form it takes. What the template opens for the assistant, such as a thought, the assistant has not
    written. A message with tool output in it stands behind the generation prompt to the letter, as rollouts write it:
    templates that take thoughts for one at the begin would lose all between the first and the last.

    Args:
        tokenizer: of the policy.
        template_options: further variables of the chat template; the same as in the prompts of a rollout.
        tool_schemas: descriptions of the tools of conversations without any, as chat templates take them.

    Raises:
        ValueError: if there are tools, and the chat template leaves them out.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template_options: Mapping[str, Any] | None = None,
        tool_schemas: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.options = dict(template_options or {})
        self.tool_schemas = tool_schemas
        if tool_schemas:
            self._check_tools("data.tool_schemas")

    @cached_property
    def _takes_tools(self) -> bool:
        return takes_tools(self.tokenizer, [_PROBE], self.options)

    @cached_property
    def _turn_end(self) -> str:
        return turn_end(self.tokenizer)

    def _check_tools(self, what: str) -> None:
        if not self._takes_tools:
            raise tools_left_out(what)

    def __call__(self, conversations: Iterable[Conversation]) -> list[Example]:
        """The rows of conversations that can all be rendered.

        Raises:
            ValueError: if the chat template refuses one, or what stands before a message.
        """
        return self.tokenize([row for conversation in conversations for row in self.render(conversation)])

    def tokenize(self, rows: Sequence[Rendered]) -> list[Example]:
        """The token ids of rows, and which of them the assistant wrote."""
        if not rows:  # a tokenizer refuses to encode no text at all
            return []
        ends = end_ids(self.tokenizer)
        texts = [piece.text for row in rows for piece in row]
        # A row longer than the tokenizer expects is counted by whoever calls: no warning here.
        encoded = iter(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        return [_example(list(_in_place(row, encoded, self.tokenizer)), ends) for row in rows]

    def render(self, conversation: Conversation) -> list[Rendered]:
        """The text of each row of a conversation.

        Raises:
            ValueError: if the chat template refuses it, or what stands before a message.
        """
        try:
            return list(self._rows(conversation))
        except jinja2.TemplateError as error:
            roles = sorted({message.role for message in conversation.messages})
            raise ValueError(
                f"the chat template of model.policy must take a conversation of {', '.join(roles)}, it says: {error}"
            ) from error

    def _rows(self, conversation: Conversation) -> Iterator[Rendered]:
        row: Rendered = []
        rendered = ""
        tools = [dict(tool) for tool in conversation.tools or self.tool_schemas]
        if tools:
            self._check_tools("a conversation with tools")
        for i, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            before = self._apply(conversation.messages[:i], tools, add_generation_prompt=True)
            if _is_kept(message):
                pieces = _verbatim(before, message, self._turn_end)
            else:
                after = self._apply(conversation.messages[: i + 1], tools, add_generation_prompt=False)
                if not after.startswith(before):
                    after = _reopened(before, after, message)
                if not after.startswith(before):
                    raise ValueError(
                        "the chat template must begin an assistant's message with its generation prompt, got "
                        f"{after[-200:]!r} behind {before[-200:]!r}"
                    )
                pieces = [Piece(after[len(before) :], is_written=True)]
            if not before.startswith(rendered):
                yield row
                row, rendered = [], ""
            row += [Piece(before[len(rendered) :], is_written=False), *pieces]
            rendered = before + "".join(piece.text for piece in pieces)
        yield row

    def _apply(self, messages: Sequence[Message], tools: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            list(map(_plain, messages)),
            tools=tools or None,  # type: ignore[arg-type]  # a list of dicts is one of dicts and functions
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self.options,
        )
        assert isinstance(text, str)
        return text


def _in_place(
    row: Rendered, encoded: Iterator[list[int]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], bool]]:
    """The tokens of each piece: the first begins the sequence, each other one stands behind the one before it."""
    before = ""
    for piece, token_ids in zip(row, encoded, strict=False):
        yield in_the_middle(tokenizer, token_ids, piece.text, before) if before else token_ids, piece.is_written
        before = piece.text


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
    _check_closed(message, opening)
    shown = after[opening.start() :]
    thought, _, spoken = message.content.rpartition(_THOUGHT_END)
    if _THOUGHT_END in shown:
        thought, _, spoken = shown.rpartition(_THOUGHT_END)
    else:
        start = shown.find(spoken.strip())
        spoken = spoken[: len(spoken) - len(spoken.lstrip())] + shown[start:] if start >= 0 else shown
    return before + _behind_opening(thought, opening) + _THOUGHT_END + spoken


def _is_kept(message: Message) -> bool:
    """Whether a message is learned to the letter: calls are the template's to write, and so is a single thought."""
    is_interrupted = len(message.segments) > 1 or message.content.count(_THOUGHT_END) > 1
    return is_interrupted and not message.tool_calls


def _verbatim(before: str, message: Message, end: str) -> Rendered:
    """A message as it stands, behind a generation prompt."""
    pieces = [Piece(segment.text, segment.is_generated) for segment in message.segments]
    if (opening := _OPENING.search(before)) is not None:
        _check_closed(message, opening)
        pieces[0] = Piece(_behind_opening(pieces[0].text, opening), pieces[0].is_written)
    pieces = [piece for piece in pieces if piece.text]
    # Behind tool output the assistant writes the end of its turn alone.
    written = pieces.pop().text if pieces and pieces[-1].is_written else ""
    return [*pieces, Piece(written + end, is_written=True)]


def _check_closed(message: Message, opening: re.Match[str]) -> None:
    if _THOUGHT_END not in message.content:
        raise ValueError(
            f"an assistant's message must close the thought that the chat template opens with {opening[0]!r}, by "
            f"{_THOUGHT_END}, got {message.content[:80]!r}"
        )


def _behind_opening(text: str, opening: re.Match[str]) -> str:
    """A text without the opening of a thought that stands before it already."""
    return text.lstrip().removeprefix(opening[0].strip()).lstrip("\n" if opening[0].endswith("\n") else "")


def _example(pieces: list[tuple[list[int], bool]], ends: frozenset[int]) -> Example:
    token_ids: list[int] = []
    is_written: list[bool] = []
    for ids, written in pieces:
        # A template may go on behind the end token; a policy never does.
        own = next((i for i, token in enumerate(ids, 1) if token in ends), len(ids)) if written else 0
        token_ids += ids
        is_written += [True] * own + [False] * (len(ids) - own)
    return Example(tuple(token_ids), tuple(is_written))

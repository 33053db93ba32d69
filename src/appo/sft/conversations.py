"""Conversations to learn from, and where they come from."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from appo.core.foreign_json import is_encodable, parse_json
from appo.core.registry import Registry
from appo.core.trajectory import Segment
from appo.environments.codes import CodeDemonstrations
from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.forks import ForkDemonstrations
from appo.environments.gates import GateDemonstrations
from appo.environments.houses import HouseDemonstrations
from appo.environments.straying import StrayingDemonstrations
from appo.prompts.base import is_message

ConversationSplit = Literal["train", "validation"]


@dataclass(frozen=True)
class Message:
    """What one side of a conversation says.

    Attributes:
        role: `system`, `user`, `assistant`, or whatever else the chat template knows.
        segments: the content in order; tool output in the middle of what an assistant says is not `is_generated`.
    """

    role: str
    segments: tuple[Segment, ...]
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """As chat templates take them, arguments by name."""

    @property
    def content(self) -> str:
        """The whole text."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Conversation:
    """Messages in order, one of them by the assistant at least.

    Attributes:
        messages: in order.
        tools: descriptions of the tools, as chat templates take them in ``tools=``.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


class ConversationSource(ABC):
    """Where conversations come from."""

    @abstractmethod
    def load(self, split: ConversationSplit) -> Sequence[Conversation]:
        """The conversations of one split, in a fixed order; the validation split may be empty.

        Raises:
            ValueError: if the training split is empty, or a conversation cannot be used.
            FileNotFoundError: if a file is missing.
        """


CONVERSATION_SOURCES: Registry[ConversationSource] = Registry("conversation source", group="appo.conversations")
"""Conversation sources by class name, those of plug-ins included."""


class DemonstratedConversations(ConversationSource):
    """Conversations about the problems of an environment.

    Attributes:
        demonstrations: what is demonstrated, and how well.
    """

    demonstrations: WorldDemonstrations | StrayingDemonstrations[Any]

    def load(self, split: ConversationSplit) -> Sequence[Conversation]:
        conversations = []
        for demonstration in self.demonstrations.draw(split):
            asked = [Message(m["role"], (Segment(m["content"], False),)) for m in demonstration.problem.messages]
            conversations.append(Conversation((*asked, Message("assistant", demonstration.segments))))
        return conversations


@CONVERSATION_SOURCES.register
@dataclass(frozen=True)
class WorldConversations(DemonstratedConversations):
    """Demonstrations about a generated world."""

    demonstrations: WorldDemonstrations = field(default_factory=WorldDemonstrations)
    """What is demonstrated, and how well."""


@CONVERSATION_SOURCES.register
@dataclass(frozen=True)
class GateConversations(DemonstratedConversations):
    """Walks through gates, with wrong turns among them."""

    demonstrations: GateDemonstrations = field(default_factory=GateDemonstrations)
    """What is demonstrated, and how well."""


@CONVERSATION_SOURCES.register
@dataclass(frozen=True)
class ForkConversations(DemonstratedConversations):
    """Walks along trails, with wrong turns among them."""

    demonstrations: ForkDemonstrations = field(default_factory=ForkDemonstrations)
    """What is demonstrated, and how well."""


@CONVERSATION_SOURCES.register
@dataclass(frozen=True)
class CodeConversations(DemonstratedConversations):
    """Walks along signs in code, with wrong turns among them."""

    demonstrations: CodeDemonstrations = field(default_factory=CodeDemonstrations)
    """What is demonstrated, and how well."""


@CONVERSATION_SOURCES.register
@dataclass(frozen=True)
class HouseConversations(DemonstratedConversations):
    """Visits to houses, with wrong keys among them."""

    demonstrations: HouseDemonstrations = field(default_factory=HouseDemonstrations)
    """What is demonstrated, and how well."""


@CONVERSATION_SOURCES.register
@dataclass(frozen=True)
class JsonlConversations(ConversationSource):
    """Conversations of a file, one JSON object a line: ``{"messages": [{"role": "user", "content": "..."}, ...]}``.

    An assistant's message may have ``tool_calls``, and no content then; ``tools`` beside ``messages`` describes the
    tools, both as the chat template takes them.
    """

    train: str
    """File of the conversations to learn from."""
    validation: str | None = None
    """File of the conversations that training is watched with."""
    tool_output: str = r" ?<result>.*?</result>"
    """Regular expression of tool output within what an assistant says, which it did not write; empty for none."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.tool_output)
        except re.error as error:
            raise ValueError(f"tool_output must be a regular expression, got {self.tool_output!r}: {error}") from error

    def load(self, split: ConversationSplit) -> Sequence[Conversation]:
        path = self.train if split == "train" else self.validation
        if path is None:
            return []
        if not Path(path).is_file():
            raise FileNotFoundError(f"{split} must be a file of conversations, got {path!r}")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        conversations = [self._parse(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
        if not conversations:
            raise ValueError(f"{split} must be a file with one conversation at least, got none in {path!r}")
        return conversations

    def _parse(self, line: str, place: str) -> Conversation:
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{place} must be a JSON object, got {line[:80]!r}") from error
        messages = record.get("messages") if isinstance(record, dict) else None
        if not isinstance(messages, list):
            raise ValueError(f"{place} must have `messages`, a list, got {line[:80]!r}")
        for number, message in enumerate(messages):
            calls = message.get("tool_calls") if isinstance(message, dict) else None
            if not is_message(message if not calls else {**message, "content": message.get("content") or ""}):
                raise ValueError(
                    f"{place} must have `messages`, a list of objects with texts `role` and `content`, got "
                    f"{json.dumps(message)[:80]} as message {number}"
                )
        tools = record.get("tools") or []
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise ValueError(f"{place} must have `tools`, a list of objects, got {json.dumps(tools)[:80]}")
        if not is_encodable(json.dumps([messages, tools], ensure_ascii=False)):
            raise ValueError(f"{place} must have texts that UTF-8 can encode, got half of a surrogate pair")
        if not any(message["role"] == "assistant" for message in messages):
            raise ValueError(f"{place} must have a message with the role `assistant`, got {line[:80]!r}")
        return Conversation(tuple(self._message(message, place) for message in messages), tuple(tools))

    def _message(self, message: Mapping[str, Any], place: str) -> Message:
        segments = self._segments(message["role"], message.get("content") or "")
        return Message(message["role"], segments, tuple(_call(call, place) for call in message.get("tool_calls") or ()))

    def _segments(self, role: str, content: str) -> tuple[Segment, ...]:
        if role != "assistant":
            return (Segment(content, False),)
        if not self.tool_output:
            return (Segment(content, True),)
        segments, start = [], 0
        for match in re.finditer(self.tool_output, content, re.DOTALL):
            segments += [Segment(content[start : match.start()], True), Segment(match.group(), False)]
            start = match.end()
        segments.append(Segment(content[start:], True))
        return tuple(segment for segment in segments if segment.text)


def _call(call: Any, place: str) -> dict[str, Any]:
    """A call as templates take it: some services write the arguments as JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except ValueError:
            arguments = None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
        raise ValueError(
            f"{place} must have `tool_calls` with a text `name` and an object `arguments`, got {json.dumps(call)[:80]}"
        )
    return {"type": "function", "function": {**function, "arguments": arguments}}

"""Conversations to learn from, and where they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from appo.core.registry import Registry
from appo.core.trajectory import Segment
from appo.environments.codes import CodeDemonstrations
from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.forks import ForkDemonstrations
from appo.environments.gates import GateDemonstrations
from appo.environments.houses import HouseDemonstrations
from appo.environments.straying import StrayingDemonstrations
from appo.prompts.base import UnusableRow

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
        origin: file it was read from; empty for what is generated.
        row: its number in `origin`; lines of text count from 1, rows of tables from 0.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    origin: str = ""
    row: int | None = None


class ConversationSource(ABC):
    """Where conversations come from."""

    @abstractmethod
    def load(self, split: ConversationSplit) -> Sequence[Conversation]:
        """The conversations of one split, in a fixed order; the validation split may be empty.

        Raises:
            ValueError: if the training split is empty, or a conversation cannot be used.
            FileNotFoundError: if a file is missing.
        """

    def rows(self, split: ConversationSplit) -> Iterator[Conversation | UnusableRow]:
        """The rows of one split, in a fixed order: each is a conversation, or the reason why it is none.

        Raises:
            FileNotFoundError: if a file is missing.
        """
        yield from self.load(split)


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

"""Supervised training: the cold start of a policy on conversations."""

from appo.supervised.conversations import (
    CONVERSATION_SOURCES,
    Conversation,
    ConversationSource,
    JsonlConversations,
    Message,
    WorldConversations,
)
from appo.supervised.datamodule import SupervisedBatch, SupervisedDataModule
from appo.supervised.module import SupervisedModule
from appo.supervised.tiny_policy import TinyPolicy

__all__ = [
    "CONVERSATION_SOURCES",
    "Conversation",
    "ConversationSource",
    "JsonlConversations",
    "Message",
    "SupervisedBatch",
    "SupervisedDataModule",
    "SupervisedModule",
    "TinyPolicy",
    "WorldConversations",
]

"""Supervised fine-tuning (SFT) of a policy on conversations, before it is trained by reinforcement learning."""

from appo.sft.conversations import (
    CONVERSATION_SOURCES,
    CodeConversations,
    Conversation,
    ConversationSource,
    ForkConversations,
    GateConversations,
    HouseConversations,
    Message,
    WorldConversations,
)
from appo.sft.datamodule import SupervisedBatch, SupervisedDataModule
from appo.sft.files import FileConversations
from appo.sft.module import SupervisedModule
from appo.sft.tiny_policy import TinyPolicy

__all__ = [
    "CONVERSATION_SOURCES",
    "CodeConversations",
    "Conversation",
    "ConversationSource",
    "FileConversations",
    "ForkConversations",
    "GateConversations",
    "HouseConversations",
    "Message",
    "SupervisedBatch",
    "SupervisedDataModule",
    "SupervisedModule",
    "TinyPolicy",
    "WorldConversations",
]

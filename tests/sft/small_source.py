"""Conversations of a small world, a policy that learns them within seconds, and messages made by hand."""

from __future__ import annotations

import json

from appo.core.trajectory import Segment
from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.problems import WorldProblems
from appo.sft import Message, TinyPolicy, WorldConversations

SOURCE = WorldConversations(WorldDemonstrations(WorldProblems(num_train=64, num_validation=8)))


TINY = TinyPolicy(SOURCE, hidden_size=16, num_layers=1, num_heads=2, mlp_size=16)


def said(role, *parts):
    """A message; every second part of an assistant's is tool output."""
    return Message(role, tuple(Segment(text, role == "assistant" and i % 2 == 0) for i, text in enumerate(parts)))


def write_jsonl(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)

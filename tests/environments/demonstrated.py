"""Demonstrations as if a policy had sampled them."""

from __future__ import annotations

import re

import torch

from appo.core.trajectory import Prompt, ToolCall, Trajectory

_CALL = re.compile(r"<(\w+)> ([^<>]*) </\1>$")
_RESULT = re.compile(r" <result>\n(.*)\n</result>")


def split_text(text):
    """Tokens as policies have them: the space before a word belongs to it, long words are of two."""
    pieces = re.findall(r"\s?\w+|\s*[^\w\s]+|\s+", text)
    return [part for piece in pieces for part in ((piece[:4], piece[4:]) if len(piece) > 5 else (piece,))]


def as_tokens(demonstration):
    """The text of every position, and whether the policy would have sampled it."""
    texts = [(token, False) for token in split_text(demonstration.problem.text)]
    for segment in demonstration.segments:
        texts += [(token, segment.is_generated) for token in split_text(segment.text)]
    return [text for text, _ in texts], [sampled for _, sampled in texts]


def as_trajectory(demonstration, log_prob):
    """Its tokens, and the trajectory of a policy that gave each of them the same log-prob."""
    tokens, sampled = as_tokens(demonstration)
    mask = torch.tensor(sampled)
    problem = demonstration.problem
    return tokens, Trajectory(
        prompt=Prompt(problem.id, problem.text, (0,) * sampled.index(True), (problem.answer,)),
        token_ids=torch.zeros(len(mask), dtype=torch.int64),
        response_mask=mask,
        behavior_log_probs=torch.where(mask, log_prob, 0.0),
        policy_versions=mask.long() - 1,
        segments=demonstration.segments,
        tool_calls=tuple(_calls(demonstration)),
        finish_reason="eos",
    )


def _calls(demonstration):
    position = len(split_text(demonstration.problem.text))
    for segment, following in zip(demonstration.segments, demonstration.segments[1:], strict=False):
        position += len(split_text(segment.text))
        if segment.is_generated:
            tool, argument = _CALL.search(segment.text).groups()
            yield ToolCall(tool, argument, _RESULT.fullmatch(following.text)[1], None, 0.0, position)

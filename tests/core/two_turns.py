"""A conversation of two turns with a tool call between them, and a branch off its second turn."""

from __future__ import annotations

import torch

from appo.core.trajectory import NOT_SAMPLED, BranchPoint, Prompt, Segment, ToolCall, Trajectory

PROMPT = Prompt(id="q1", question="What is 6 * 7?", token_ids=(5, 6), answers=("42",))


def parent_trajectory() -> Trajectory:
    """Prompt 5 6, first turn 10 11, tool result 20, second turn 12 13."""
    return Trajectory(
        prompt=PROMPT,
        token_ids=torch.tensor([5, 6, 10, 11, 20, 12, 13]),
        response_mask=torch.tensor([False, False, True, True, False, True, True]),
        behavior_log_probs=torch.tensor([0.0, 0.0, -0.1, -0.2, 0.0, -0.3, -0.4]),
        policy_versions=torch.tensor([NOT_SAMPLED, NOT_SAMPLED, 3, 3, NOT_SAMPLED, 3, 3]),
        segments=(Segment("<python>6*7</python>", True), Segment(" <result>42</result>", False), Segment("42", True)),
        tool_calls=(ToolCall("python", "6*7", "42", None, 0.1, position=4),),
        finish_reason="eos",
    )


def branch_trajectory(parent: Trajectory, position: int = 5) -> Trajectory:
    """Keeps the parent's tokens up to 12, the first of its second turn, then goes on with 14 15 16."""
    return Trajectory(
        prompt=PROMPT,
        token_ids=torch.tensor([5, 6, 10, 11, 20, 12, 14, 15, 16]),
        response_mask=torch.tensor([False, False, True, True, False, True, True, True, True]),
        behavior_log_probs=torch.tensor([0.0, 0.0, -0.1, -0.2, 0.0, -0.3, -0.5, -0.6, -0.7]),
        policy_versions=torch.tensor([NOT_SAMPLED, NOT_SAMPLED, 3, 3, NOT_SAMPLED, 3, 4, 4, 4]),
        segments=(
            Segment("<python>6*7</python>", True),
            Segment(" <result>42</result>", False),
            Segment("41 43", True),
        ),
        tool_calls=parent.tool_calls,
        finish_reason="length",
        origin=BranchPoint(parent, position, score=1.5),
    )

"""Responses written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from appo.core.trajectory import Prompt, Segment, ToolCall, Trajectory

ANSWER = r"<think>so</think><answer>\boxed{Paris}</answer>"
RESULT = [" <result>\nParis\n</result>"]


def trajectory(
    *texts: str | list[str],
    answers: Sequence[str] = ("Paris",),
    calls: Sequence[tuple[str, str | None]] = (),
    num_sampled: int = 1,
    num_given: int = 0,
    prompt_id: str = "p",
) -> Trajectory:
    """A response whose segments are texts of the policy and, as one-element lists, tool output.

    Args:
        *texts: its segments.
        answers: that are accepted.
        calls: tools and failures.
        num_sampled: tokens of the policy.
        num_given: tokens of tool output after them.
        prompt_id: of the prompt, which has one token.
    """
    segments = tuple(Segment(text[0], False) if isinstance(text, list) else Segment(text, True) for text in texts)
    mask = torch.tensor([False] + num_sampled * [True] + num_given * [False])
    return Trajectory(
        prompt=Prompt(prompt_id, "Capital?", (1,), tuple(answers)),
        token_ids=torch.arange(len(mask)),
        response_mask=mask,
        behavior_log_probs=torch.zeros(len(mask)),
        policy_versions=mask.long() - 1,
        segments=segments,
        tool_calls=tuple(ToolCall(tool, "x", "y", failure, 0.0, 1) for tool, failure in calls),
        finish_reason="eos",
    )


def boxed(answer: str, answers: Sequence[str] = ("Paris",), prompt_id: str = "p") -> Trajectory:
    """A response in the right form that gives an answer."""
    text = f"<think>so</think><answer>It is \\boxed{{{answer}}}.</answer>"
    return trajectory(text, answers=answers, prompt_id=prompt_id)

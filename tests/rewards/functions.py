"""Functions that tests name by import path."""

from __future__ import annotations

import os
import re
import threading

import torch

from appo.core.trajectory import RewardResult, Trajectory

NOT_CALLABLE = 3


def length(trajectory: Trajectory, scale: float = 1.0) -> float:
    return scale * len(trajectory.text)


def even_length(trajectory: Trajectory) -> float:
    """Fails on texts of odd length."""
    if len(trajectory.text) % 2:
        raise ValueError("odd")
    return 0.5


def parent_length(trajectory: Trajectory) -> RewardResult:
    assert trajectory.origin is not None
    return RewardResult(
        float(len(trajectory.origin.trajectory)), {"tokens": float(trajectory.token_ids.sum())}, "counted"
    )


def as_tensor(trajectory: Trajectory) -> torch.Tensor:
    return torch.tensor(0.5)


def as_text(trajectory: Trajectory) -> str:
    return "0.5"


def not_a_number(trajectory: Trajectory) -> float:
    return float("nan")


def raises(trajectory: Trajectory) -> float:
    raise KeyError(trajectory.prompt.id)


def backtracks(trajectory: Trajectory) -> float:
    """Holds the interpreter for ages where the policy says so; no thread could stop it."""
    return float(re.match(r"(a+)+$", "a" * 60 + "b") is not None) if "hang" in trajectory.text else 1.0


def process_id(trajectory: Trajectory) -> RewardResult:
    return RewardResult(float(os.getpid()), {"length": float(len(trajectory.text))}, "counted", "7")


def thread_is_main(trajectory: Trajectory) -> float:
    return float(threading.current_thread() is threading.main_thread())


def without_arguments() -> float:
    return 0.0


async def later(trajectory: Trajectory) -> float:
    return 0.0


def easier(trajectory: Trajectory, level: int, bonus: float = 0.0) -> float:
    return float(level) + bonus


def all_at_once(completions: list[str], level: list[int], scale: float = 1.0, **kwargs: object) -> list[float | None]:
    """As functions of other trainers are: lists by name, a value each, None where it has nothing to say."""
    assert {"prompts", "completion_ids", "answers", "trajectories"} <= kwargs.keys()
    if any("bad" in text for text in completions):
        raise ValueError("bad")
    return [None if text == "-" else scale * number for text, number in zip(completions, level, strict=True)]


def too_few(completions: list[str]) -> list[float]:
    return [0.0]


def hangs_together(trajectories: list[Trajectory]) -> list[float]:
    threading.Event().wait(30.0 if len(trajectories) > 1 else 0.0)
    return [0.0] * len(trajectories)

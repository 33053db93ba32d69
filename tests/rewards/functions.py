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


def process_id(trajectory: Trajectory) -> float:
    return float(os.getpid())


def thread_is_main(trajectory: Trajectory) -> float:
    return float(threading.current_thread() is threading.main_thread())


def without_arguments() -> float:
    return 0.0


async def later(trajectory: Trajectory) -> float:
    return 0.0

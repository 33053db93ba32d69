"""Scorers that are plain functions, and what is none."""

import torch

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Trajectory
from appo.scorers import BatchContext, Scores


def surprise(batch: TrajectoryBatch, context: BatchContext, scale: float = 1.0) -> torch.Tensor:
    """How unlikely the policy holds its own tokens."""
    return -scale * batch.old_log_probs


def preferring(batch: TrajectoryBatch, context: BatchContext) -> Scores:
    """The same, preferring uncertain tokens."""
    values = (-batch.old_log_probs).where(batch.response_mask, float("-inf"))
    return Scores(values, preferred=batch.response_mask & (batch.entropies > 0.5))


def influence(trajectory: Trajectory, tokens: list[str], scale: float = 1.0) -> list[float]:
    """A number a token, which an environment might know."""
    return [scale * (token_id % 7) for token_id in trajectory.token_ids.tolist()]


def of_a_row(batch: TrajectoryBatch, context: BatchContext) -> torch.Tensor:
    """One number a trajectory."""
    return batch.old_log_probs.sum(-1)


def of_a_batch(batch: TrajectoryBatch) -> torch.Tensor:
    """Takes no context."""
    return batch.entropies

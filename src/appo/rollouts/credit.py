"""Which tokens of the trees are trained, and with what advantage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import first_fork, shared_mean

TrainOn = Literal["roots", "suffixes", "both", "trajectories"]
"""Roots alone; what lies behind branch points; each sampled token once; or every row, whole."""

Estimate = Callable[[TrajectoryBatch, BatchContext], Tensor]
"""An advantage estimator."""


def credited(
    batch: TrajectoryBatch, context: BatchContext, estimate: Estimate, train_on: TrainOn, counts: Tensor
) -> TrajectoryBatch:
    """The batch with advantages, and with the tokens that they train.

    In a tree, a token that several rows share is trained once, on the row that it was sampled for, with the mean of
    their advantages: its gradient is that of all rows trained whole, each token of a row weighted by one over the
    number of rows that share it, as long as no ratio is clipped.

    Args:
        batch: roots and branches, rewarded.
        context: of the batch.
        estimate: of the advantages.
        train_on: which tokens are trained.
        counts: ``[B]`` bool, rows that enter the statistics and are trained; one that does not must have no branches.
    """
    rows = counts.nonzero()[:, 0]
    advantages = torch.zeros(batch.token_ids.shape, dtype=batch.rewards.dtype)
    if len(rows) == len(batch):
        advantages[:] = estimate(batch, context)
    elif len(rows):
        values = estimate(batch.select(rows), context.select(rows))
        advantages[rows, : values.shape[1]] = values
    else:
        # Estimators may reduce over all processes: each calls its own once.
        estimate(replace(batch, train_mask=torch.zeros_like(batch.response_mask)), context)
    mask = trained_tokens(batch, train_on) & counts.unsqueeze(-1)
    if train_on in ("suffixes", "both"):
        advantages = shared_mean(advantages, batch.owners, batch.response_mask & counts.unsqueeze(-1))
    return replace(batch, advantages=advantages.where(mask, 0.0), train_mask=mask)


def trained_tokens(batch: TrajectoryBatch, train_on: TrainOn) -> Tensor:
    """``[B, T]`` bool, sampled tokens that are trained.

    Args:
        batch: roots and branches.
        train_on: of which.
    """
    if train_on == "trajectories":
        return batch.response_mask
    if train_on == "roots":
        return batch.response_mask & ~batch.is_branch.unsqueeze(-1)
    own = batch.response_mask & batch.is_own
    if train_on == "both":
        return own
    length = batch.token_ids.shape[1]
    fork = first_fork(batch.parent, batch.branch_position, length)
    return own & (torch.arange(length, device=fork.device) >= fork.unsqueeze(-1))

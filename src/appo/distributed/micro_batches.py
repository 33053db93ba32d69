"""The sequences of one optimizer step, the global batch, as every process computes them."""

from __future__ import annotations

from dataclasses import replace

import torch

from appo.core.batch import TrajectoryBatch
from appo.distributed import comm


def tensor_parallel_batch(batch: TrajectoryBatch | None) -> tuple[TrajectoryBatch | None, slice]:
    """Joins the sequences of a tensor-parallel group, and says which of them are this process's.

    Args:
        batch: of this process, or None if it has no sequences; without tensor parallelism it is all there is.
    """
    if comm.tensor_parallel_size() == 1:
        return batch, slice(0 if batch is None else len(batch))
    parts, own = comm.all_gather_tensor_parallel(() if batch is None else batch.to(torch.device("cpu")))
    present = [part for part in parts if isinstance(part, TrajectoryBatch)]
    return TrajectoryBatch.cat(present) if present else None, own


def micro_batches_of_step(batch: TrajectoryBatch, max_tokens: int, shares: bool) -> tuple[list[TrajectoryBatch], int]:
    """Cuts this process's part of the global batch into micro-batches that know the totals of all of it.

    Weights of a sharded policy are all-gathered in every forward pass, so every process makes the same number of them:
    those with fewer micro-batches end with dummy ones, of one sequence whose loss counts nothing.

    Args:
        batch: from `tensor_parallel_batch`.
        max_tokens: of one micro-batch, padding not included; a longer sequence forms a micro-batch of its own.
        shares: whether tokens that sequences begin with alike go through the policy once, and count once.

    Returns:
        The micro-batches, and how many of them are to be trained, the first ones.
    """
    own = batch.micro_batches(max_tokens, shares)
    num_tokens, num_rows = int(batch.trained.sum()), int(batch.trained.any(-1).sum())
    counts = comm.all_gather((num_tokens, num_rows, batch.num_trajectories or len(batch), len(own)))
    # Every process of a tensor-parallel group counts the sequences of all of it.
    totals = (sum(column) // comm.tensor_parallel_size() for column in zip(*counts, strict=True))
    names = ("num_tokens", "num_rows", "num_trajectories")
    of_step = dict(zip(names, totals, strict=False))
    num_missing = max(count for *_, count in counts) - len(own)
    # A process may have nothing to train. Its dummies train what they sampled, since the head must have its turn.
    dummies = [replace(batch.select(batch.lengths.argmin().unsqueeze(0)), train_mask=None)] * num_missing
    return [replace(micro, **of_step) for micro in [*own, *dummies]], len(own)

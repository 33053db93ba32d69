"""The rows of one optimizer step, which all processes take together."""

from __future__ import annotations

from dataclasses import replace

import torch

from appo.core.batch import TrajectoryBatch
from appo.distributed import comm


def pooled(batch: TrajectoryBatch | None) -> tuple[TrajectoryBatch | None, slice]:
    """The rows of all processes of a tensor-parallel group, and which of them are this one's.

    Args:
        batch: of this process, or None if it has no rows; without tensor parallelism it is all there is.
    """
    if comm.tensor_parallel_size() == 1:
        return batch, slice(0 if batch is None else len(batch))
    parts, own = comm.pool_tensor_parallel(() if batch is None else batch.to(torch.device("cpu")))
    brought = [part for part in parts if isinstance(part, TrajectoryBatch)]
    return TrajectoryBatch.cat(brought) if brought else None, own


def joint_micro_batches(batch: TrajectoryBatch, max_tokens: int) -> tuple[list[TrajectoryBatch], int]:
    """Micro-batches that know the totals of all processes, as many on each: the last ones of some are idle.

    Args:
        batch: from `pooled`.
        max_tokens: of one micro-batch, padding not included; a longer row forms a micro-batch of its own.

    Returns:
        The micro-batches, and how many of them are to be trained, the first ones.
    """
    own = batch.micro_batches(max_tokens)
    counts = comm.gather((int(batch.response_mask.sum()), len(batch), len(own)))
    # Those that compute layers together have the same rows.
    num_tokens, num_rows, _ = (sum(column) // comm.tensor_parallel_size() for column in zip(*counts, strict=True))
    micros = [replace(micro, num_tokens=num_tokens, num_rows=num_rows) for micro in own]
    # Rows come longest first.
    last = micros[-1]
    idle = last.select(torch.tensor([len(last) - 1], device=last.lengths.device))
    return micros + [idle] * (max(count for _, _, count in counts) - len(own)), len(own)

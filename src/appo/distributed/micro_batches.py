"""The rows of one optimizer step, which all processes take together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from appo.core.batch import TrainBatch
from appo.distributed import comm


def pooled(batch: TrainBatch) -> tuple[TrainBatch, slice]:
    """The rows of all processes that compute layers together, and which of them are this one's.

    Args:
        batch: of this process; without tensor parallelism it is all there is.
    """
    if comm.tensor_parallel_size() == 1:
        return batch, slice(len(batch))
    parts, own = comm.pool_tensor_parallel(batch.to(torch.device("cpu")))
    return TrainBatch.cat(parts).to(batch.token_ids.device), own


def joint_micro_batches(batch: TrainBatch, max_tokens: int) -> tuple[list[tuple[Tensor, TrainBatch]], int]:
    """Micro-batches that know the totals of all processes, as many on each: the last ones of some are idle.

    Args:
        batch: from `pooled`.
        max_tokens: of one micro-batch, padding not included; a longer row forms a micro-batch of its own.

    Returns:
        Row numbers, ``[B_i]`` int64 each, and their rows; and how many of them are to be trained, the first ones.
    """
    own = batch.micro_batches(max_tokens)
    counts = comm.gather((int(batch.response_mask.sum()), len(batch), len(own)))
    # Those that compute layers together have the same rows.
    num_tokens, num_rows, _ = (sum(column) // comm.tensor_parallel_size() for column in zip(*counts, strict=True))
    micros = [(rows, replace(micro, num_tokens=num_tokens, num_rows=num_rows)) for rows, micro in own]
    # Rows come longest first.
    rows, last = micros[-1]
    idle = (rows[-1:], last.select(torch.tensor([len(last) - 1], device=last.lengths.device)))
    return micros + [idle] * (max(count for _, _, count in counts) - len(own)), len(own)

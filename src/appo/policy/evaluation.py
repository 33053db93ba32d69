"""A policy's log-probs and entropies of batches, in passes of bounded size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.distributed import comm
from appo.distributed.fsdp import is_sharded
from appo.distributed.micro_batches import tensor_parallel_batch
from appo.policy.log_probs import PolicyLogProbs

_SECOND = torch.tensor([[False, True]])
"""Mask of a sequence of two tokens, of which one can be scored."""


@torch.no_grad()
def evaluate_batch(
    evaluate: PolicyLogProbs,
    batch: TrajectoryBatch | None,
    max_tokens: int,
    device: torch.device,
    precision: Callable[[], AbstractContextManager[None]],
    with_entropies: bool = True,
) -> tuple[Tensor, Tensor]:
    """Computes log-probs and entropies of the sampled tokens of a batch, without gradient.

    Args:
        evaluate: of the policy or the reference.
        batch: on the CPU; None takes part in what others evaluate, which all ranks do at the same time.
        max_tokens: that go through the model at once, padding not included, and what sequences begin with alike
            counted once if the model computes it once; a longer sequence goes alone.
        device: of the model.
        precision: context of the training step, or an importance ratio would not begin at 1.
        with_entropies: as `PolicyLogProbs` takes it.

    Returns:
        ``[B, T]`` log-probs and ``[B, T]`` entropies in nats, on the CPU; 0 on tokens that were not sampled.
    """
    joined, own = tensor_parallel_batch(batch)
    shares = evaluate.shares
    was_training = evaluate.model.training
    evaluate.model.eval()
    log_probs, entropies = (torch.zeros((0, 0) if joined is None else joined.token_ids.shape) for _ in range(2))
    buckets = [] if joined is None else joined.buckets(max_tokens, shares)
    # Weights of a sharded policy are all-gathered in every pass: processes make the same number of them.
    num_dummies = max(comm.all_gather(len(buckets))) - len(buckets) if is_sharded(evaluate.model) else 0
    for bucket in buckets:
        assert joined is not None
        part = joined.select(bucket)
        with precision():
            values = evaluate(part.token_ids.to(device), part.response_mask.to(device), with_entropies)
        for column, value in zip((log_probs, entropies), values, strict=True):
            column[bucket, : value.shape[1]] = value.to(column)
    for _ in range(num_dummies):
        evaluate(torch.zeros(1, 2, dtype=torch.int64, device=device), _SECOND.to(device), with_entropies)
    evaluate.model.train(was_training)
    width = 0 if batch is None else batch.token_ids.shape[1]
    return log_probs[own, :width], entropies[own, :width]

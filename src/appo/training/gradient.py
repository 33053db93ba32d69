"""The gradient of one optimizer step, in micro-batches whose losses add up."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.distributed import comm
from appo.distributed.micro_batches import micro_batches_of_step
from appo.losses import Loss
from appo.policy.log_probs import PolicyLogProbs
from appo.training.memory_errors import updating
from appo.training.token_record import TokenRecord


def accumulate_gradient(
    policy: PolicyLogProbs,
    loss: Loss,
    batch: TrajectoryBatch,
    max_tokens: int,
    strategy: Strategy,
    backward: Callable[[Tensor], None],
    record: TokenRecord | None = None,
) -> dict[str, Tensor]:
    """Adds the gradient of a loss to the policy's parameters; all ranks call it at the same time.

    Rows that no policy has evaluated have the log-probs of this one as old ones: their importance ratio begins at 1.

    Args:
        policy: that is trained.
        loss: of a micro-batch, whose shares add up to that of the step.
        batch: the rows of this process, or of its tensor-parallel group.
        max_tokens: of one micro-batch, padding not included; what rows begin with alike counts once if the policy
            computes it once.
        strategy: of the trainer.
        backward: of the trainer, for the loss of a micro-batch.
        record: keeps what the step makes of single tokens.

    Returns:
        The loss and the loss's metrics of the whole step, on the CPU.
    """
    micros, num_own = micro_batches_of_step(batch, max_tokens, policy.shares)
    totals: dict[str, Tensor] = {}
    for number, micro in enumerate(micros):
        weight = float(number < num_own)
        with updating(micro, policy.shares):
            log_probs, entropies = policy(micro.token_ids, micro.trained)
            old_log_probs = micro.old_log_probs.where(micro.is_evaluated.unsqueeze(-1), log_probs.detach())
            compared = replace(micro, old_log_probs=old_log_probs)
            share, metrics = loss(log_probs, entropies, compared)
            if record is not None and number < num_own:
                by_token = loss.token_values(log_probs.detach(), compared) | {"entropies": entropies.detach()}
                record.add(compared, by_token)
            # Gradients stay in the process as yet, where the strategy can wait for the last micro-batch.
            is_last = number + 1 == len(micros)
            with (
                nullcontext()
                if is_last or not isinstance(strategy, ParallelStrategy)
                else strategy.block_backward_sync()
            ):
                # Strategies take the mean of the gradients of processes with rows of their own; the step is their sum.
                backward(share * (weight * comm.data_parallel_size()))
        for name, value in {"loss": share.detach(), **metrics}.items():
            totals[name] = totals.get(name, torch.zeros_like(value)) + weight * value
    # Those of a tensor-parallel group have the same totals.
    values = comm.all_reduce(torch.stack(list(totals.values()))).float() / comm.tensor_parallel_size()
    return dict(zip(totals, values, strict=True))

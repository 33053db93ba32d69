"""Rows of a mini-batch, made by hand or at random, and live log-probs of them."""

import torch

from appo.core.batch import TrajectoryBatch
from appo.core.collate import make_batch


def train_batch(
    num_rows: int = 7, length: int = 9, seed: int = 0, dtype: torch.dtype = torch.float64
) -> TrajectoryBatch:
    """Rows of different lengths with tool output in the middle; ratios far enough apart to reach every clip.

    The reward of a row is its number.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.arange(num_rows) % (length - 3) + 4
    mask = torch.arange(length) < lengths.unsqueeze(-1)
    mask[:, 0] = False
    mask[:, 2] = False
    log_probs = -torch.rand(3, num_rows, length, generator=generator, dtype=dtype) * mask
    return make_batch(
        token_ids=torch.randint(0, 9, (num_rows, length), generator=generator),
        lengths=lengths,
        response_mask=mask,
        behavior_log_probs=log_probs[0],
        old_log_probs=log_probs[1],
        advantages=torch.randn(num_rows, length, generator=generator, dtype=dtype) * mask,
        rewards=torch.arange(num_rows),
        ref_log_probs=log_probs[2],
    )


def live(batch: TrajectoryBatch, spread: float = 0.8, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs at some distance from the old ones, and entropies, both to be differentiated."""
    generator = torch.Generator().manual_seed(seed)
    shape, dtype = batch.token_ids.shape, batch.old_log_probs.dtype
    noise = spread * torch.randn(shape, generator=generator, dtype=dtype) * batch.response_mask
    entropies = torch.rand(shape, generator=generator, dtype=dtype) * batch.response_mask
    return (batch.old_log_probs + noise).requires_grad_(), entropies.requires_grad_()


def runaway_batch() -> tuple[TrajectoryBatch, torch.Tensor]:
    """Row 0 has two tokens with ratio 4 and a negative advantage, row 1 one of them."""
    zeros = torch.zeros(2, 4)
    batch = make_batch(
        token_ids=zeros.long(),
        lengths=torch.tensor([4, 4]),
        response_mask=torch.tensor([[False, True, True, True]] * 2),
        behavior_log_probs=zeros,
        old_log_probs=zeros,
        advantages=torch.tensor([[0.0, -1.0, -1.0, 1.0], [0.0, -1.0, 1.0, 1.0]]),
    )
    log_four = torch.tensor(4.0).log().item()
    log_probs = torch.tensor([[0.0, log_four, log_four, 0.0], [0.0, log_four, 0.0, 0.0]], requires_grad=True)
    return batch, log_probs

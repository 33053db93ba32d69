"""Which positions a branch may leave from, whatever their score."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from appo.batch import TrajectoryBatch


def branchable_tokens(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which token ids may be branch points: those that are neither special nor white space alone.

    Args:
        tokenizer: of the policy.

    Returns:
        ``[V]`` bool, `V` the number of ids the tokenizer knows.
    """
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))])
    return torch.tensor([token_id not in special and bool(text.strip()) for token_id, text in enumerate(texts)])


def branch_candidates(
    batch: TrajectoryBatch, branchable: Tensor, prompt_lengths: Tensor, max_response_tokens: int, min_remaining: int
) -> Tensor:
    """Positions that leave a branch something to decide and room to do so.

    Args:
        batch: initial trajectories.
        branchable: ``[V]`` bool by token id; ids beyond `V` (a padded vocabulary) are not branchable.
        prompt_lengths: ``[B]`` int64.
        max_response_tokens: limit of one trajectory.
        min_remaining: fewest tokens a branch must have left under that limit.

    Returns:
        ``[B, T]`` bool: sampled, branchable, not the last token, with room behind it.
    """
    positions = torch.arange(batch.token_ids.shape[1])
    known = batch.token_ids < len(branchable)
    allowed = branchable[batch.token_ids.where(known, 0)] & known
    is_inner = positions < (batch.lengths - 1).unsqueeze(-1)
    last_position = prompt_lengths + max_response_tokens - min_remaining - 1
    return batch.response_mask & allowed & is_inner & (positions <= last_position.unsqueeze(-1))

"""The released code's scaling of rewards up to branch points."""

from __future__ import annotations

import torch
from torch import Tensor


def reward_scale(parent: Tensor, branch_position: Tensor, branch_score: Tensor, length: int, discount: float) -> Tensor:
    """Factors of the per-token rewards of trajectories that were branched.

    ``M_t = 1 + score / max_score * discount**(branch_position - t)`` up to the branch point and 1 behind it, averaged
    over the branches of a trajectory. `max_score` is over the whole batch; unless it is positive all factors are 1, and
    so are those of a branch whose own score is not. A reward that stands on the last token alone is therefore scaled
    only by branches that leave there.

    Args:
        parent: ``[B]`` int64, row a branch left; negative for an initial trajectory.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        branch_score: ``[B]`` score of the branch point, likewise.
        length: `T`, positions of a row, prompt included.
        discount: in [0, 1], of the distance to the branch point.

    Returns:
        ``[B, T]`` factors; 1 on rows without branches.
    """
    branches = (parent >= 0).nonzero()[:, 0]
    parents, scores = parent[branches], branch_score[branches].clamp(min=0.0)
    share = scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny) if len(branches) else scores
    distance = branch_position[branches].unsqueeze(-1) - torch.arange(length, device=parent.device)
    decay = torch.where(distance >= 0, discount ** distance.clamp(min=0).to(scores.dtype), 0.0)
    extra = scores.new_zeros(len(parent), length).index_add(0, parents, share.unsqueeze(-1) * decay)
    count = torch.bincount(parents, minlength=len(parent)).clamp(min=1)
    return 1.0 + extra / count.unsqueeze(-1)

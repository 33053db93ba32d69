"""What the authors' release computes and the project does not, so that the rest can be compared to the last value."""

from __future__ import annotations

import torch
from torch import Tensor


def standardize_by_row(x: Tensor, mask: Tensor, group: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """`masked_standardize` with the release's rounding.

    Each row's selected values are averaged on their own, and equal values may end up as far as 0.1 from 0: their mean
    differs from them in the last bit, and `eps` blows that up. Which branches the release picks depends on this.
    """
    assert group is None
    rows = [row for row in x[mask].split(mask.sum(-1).tolist()) if len(row)]
    z_scores = [(row - row.mean()) / (row.std(correction=0) + eps) for row in rows]
    return torch.zeros_like(x).masked_scatter(mask, torch.cat([x.new_empty(0), *z_scores]))


def reward_scale(parent: Tensor, branch_position: Tensor, branch_score: Tensor, length: int, discount: float) -> Tensor:
    """``[B, T]`` factors of the rewards of single tokens in trajectories that were branched; 1 on all others.

    ``M_t = 1 + score / max_score * discount**(branch_position - t)`` up to the branch point and 1 behind it, averaged
    over the branches of a trajectory. `max_score` is over the whole batch; unless it is positive all factors are 1, and
    so are those of a branch whose own score is not. The project leaves it out: rewards stand on the last token, where
    no branch leaves.
    """
    branches = (parent >= 0).nonzero()[:, 0]
    parents, scores = parent[branches], branch_score[branches].clamp(min=0.0)
    share = scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny) if len(branches) else scores
    distance = branch_position[branches].unsqueeze(-1) - torch.arange(length)
    decay = torch.where(distance >= 0, discount ** distance.clamp(min=0).to(scores.dtype), 0.0)
    extra = scores.new_zeros(len(parent), length).index_add(0, parents, share.unsqueeze(-1) * decay)
    count = torch.bincount(parents, minlength=len(parent)).clamp(min=1)
    return 1.0 + extra / count.unsqueeze(-1)

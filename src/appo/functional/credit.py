"""How the outcomes of branches become credit of the tokens they share with their parents."""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_credit(advantages: Tensor, parent: Tensor, branch_position: Tensor, length: int) -> Tensor:
    """Gives each position the mean advantage of the branches that share it.

    ``credit[r, t] = mean of advantages[j] over branches j with parent[j] = r and branch_position[j] >= t``

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).

    Args:
        advantages: ``[B]`` of whole trajectories; only those of branches are read.
        parent: ``[B]`` int64, row a branch left; negative for an initial trajectory.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        length: `T`, positions of a row, prompt included.

    Returns:
        ``[B, T]`` credit; 0 where no branch shares the position.
    """
    branches = (parent >= 0).nonzero()[:, 0]
    index = parent[branches], branch_position[branches]
    shape = len(parent), length
    total = advantages.new_zeros(shape).index_put(index, advantages[branches], accumulate=True)
    count = torch.zeros(shape, dtype=torch.int64, device=parent.device)
    count = count.index_put(index, torch.ones_like(branches), accumulate=True)
    return _suffix_sum(total) / _suffix_sum(count).clamp(min=1)


def _suffix_sum(x: Tensor) -> Tensor:
    return x.flip(-1).cumsum(-1).flip(-1)

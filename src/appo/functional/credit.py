"""Credit of the tokens that branches share with their parents."""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_credit(advantages: Tensor, parent: Tensor, branch_position: Tensor, length: int) -> Tensor:
    """Gives each position the mean advantage of the branches that share it.

    ``credit[r, t] = mean of advantages[j] over branches j with parent[j] = r and branch_position[j] >= t``

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).

    Args:
        advantages: ``[B]`` of whole trajectories; only those of branches are read.
        parent: ``[B]`` int64, row a branch left; negative for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        length: `T`, positions of a row, prompt included.

    Returns:
        ``[B, T]`` credit; 0 where no branch shares the position.
    """
    total, count = _sums_over_branches(advantages, parent, branch_position, length)
    return total / count.clamp(min=1)


def shared_prefix_mean(advantages: Tensor, parent: Tensor, branch_position: Tensor, length: int) -> Tensor:
    """Gives each position the mean advantage of all trajectories that share it, the row's own included.

    A position of a root is shared by the branches that left at it or behind it; a branch shares the positions up to its
    branch point with its parent, and so with its parent's other branches; the rest is its own.

    See "Agentic Reinforced Policy Optimization" (https://arxiv.org/abs/2507.19849), section 3.2, hard estimation.

    Args:
        advantages: ``[B]`` of whole trajectories.
        parent: ``[B]`` int64, row a branch left; negative for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        length: `T`, positions of a row, prompt included.

    Returns:
        ``[B, T]`` means.
    """
    total, count = _sums_over_branches(advantages, parent, branch_position, length)
    own = advantages.unsqueeze(-1)
    of_root = (own + total) / (1 + count)
    is_shared = torch.arange(length, device=parent.device) <= branch_position.unsqueeze(-1)
    of_branch = torch.where(is_shared, of_root[parent.clamp(min=0)], own)
    return torch.where((parent >= 0).unsqueeze(-1), of_branch, of_root)


def _sums_over_branches(
    advantages: Tensor, parent: Tensor, branch_position: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """``[B, T]`` sum of the advantages, and number, of the branches that share each position of a root."""
    branches = (parent >= 0).nonzero()[:, 0]
    index = parent[branches], branch_position[branches]
    shape = len(parent), length
    total = advantages.new_zeros(shape).index_put(index, advantages[branches], accumulate=True)
    count = torch.zeros(shape, dtype=torch.int64, device=parent.device)
    count = count.index_put(index, torch.ones_like(branches), accumulate=True)
    # So far a branch counts at the position where it leaves; it shares that one and all before it.
    return _suffix_sum(total), _suffix_sum(count)


def _suffix_sum(x: Tensor) -> Tensor:
    return x.flip(-1).cumsum(-1).flip(-1)

"""Credit of the tokens that branches share with the trajectories that they left."""

from __future__ import annotations

import torch
from torch import Tensor

from appo.functional.trees import shared_mean, token_owners


def prefix_credit(advantages: Tensor, parent: Tensor, branch_position: Tensor, length: int) -> Tensor:
    """Gives each token the mean advantage of the branches that share it, at any depth.

    ``credit[r, t] = mean of advantages[j] over the branches j that share the token but were not sampled for it``

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384); so does the authors' release.

    Args:
        advantages: ``[B]`` of whole trajectories; only those of branches are read.
        parent: ``[B]`` int64, row a branch left; negative for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        length: `T`, positions of a row, prompt included.

    Returns:
        ``[B, T]`` credit, the same on all rows that share a token; 0 where no branch shares it.
    """
    owners = token_owners(parent, branch_position, length)
    is_shared = owners != torch.arange(len(parent), device=parent.device).unsqueeze(-1)
    return shared_mean(advantages, owners, is_shared)


def shared_prefix_mean(advantages: Tensor, parent: Tensor, branch_position: Tensor, length: int) -> Tensor:
    """Gives each token the mean advantage of all trajectories that share it, the one that it was sampled for included.

    See "Agentic Reinforced Policy Optimization" (https://arxiv.org/abs/2507.19849), section 3.2, hard estimation.

    Args:
        advantages: ``[B]`` of whole trajectories.
        parent: ``[B]`` int64, row a branch left; negative for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        length: `T`, positions of a row, prompt included.

    Returns:
        ``[B, T]`` means.
    """
    owners = token_owners(parent, branch_position, length)
    return shared_mean(advantages, owners, torch.ones_like(owners, dtype=torch.bool))

"""Who sampled what in a tree of trajectories, of any depth.

A row is a whole sequence: a branch repeats the tokens that it shares with its parent. Shapes: `B` rows, `T` positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tree_roots(parent: Tensor) -> Tensor:
    """The root of each row's tree.

    Args:
        parent: ``[B]`` int64, row a branch left, which comes before it; negative for a root.

    Returns:
        ``[B]`` int64; a root's own number for a root.
    """
    rows = torch.arange(len(parent), device=parent.device)
    root = torch.where(parent >= 0, parent, rows)
    # Each step doubles the number of ancestors that are passed.
    while not torch.equal(higher := root[root], root):
        root = higher
    return root


def token_owners(parent: Tensor, branch_position: Tensor, length: int) -> Tensor:
    """The row for which each token was sampled: of those that share a token, the one that all others came from.

    Args:
        parent: ``[B]`` int64, row a branch left, which comes before it; negative for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        length: `T`, positions of a row, prompt included.

    Returns:
        ``[B, T]`` int64: the row itself behind its branch point, and what its parent's row has before.
    """
    rows = torch.arange(len(parent), device=parent.device)
    positions = torch.arange(length, device=parent.device)
    is_shared = (parent >= 0).unsqueeze(-1) & (positions <= branch_position.unsqueeze(-1))
    owners = torch.where(is_shared, parent.unsqueeze(-1), rows.unsqueeze(-1))
    # Each step doubles the number of generations that are passed; one is not passed twice, for an owner owns itself.
    while not torch.equal(higher := owners.gather(0, owners), owners):
        owners = higher
    return owners


def shared_mean(values: Tensor, owners: Tensor, counted: Tensor) -> Tensor:
    """Gives each token the mean of a value over the rows that share it.

    Args:
        values: ``[B]`` of whole rows, or ``[B, T]`` of their tokens.
        owners: ``[B, T]`` int64, from `token_owners`.
        counted: ``[B, T]`` bool, tokens whose value enters the means: at least those of the responses.

    Returns:
        ``[B, T]``, equal on all rows that share a token; 0 where nothing is counted.
    """
    weight = counted.to(values.dtype)
    value = values.unsqueeze(-1) if values.ndim == 1 else values
    total = torch.zeros_like(weight).scatter_add(0, owners, value.where(counted, 0.0) * weight)
    number = torch.zeros_like(weight).scatter_add(0, owners, weight)
    return (total / number.clamp(min=1.0)).gather(0, owners)


def first_fork(parent: Tensor, branch_position: Tensor, length: int) -> Tensor:
    """The earliest position from which on a row is one ending among several.

    Args:
        parent: ``[B]`` int64, row a branch left; negative for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        length: `T`, what a root has that nothing left.

    Returns:
        ``[B]`` int64: the position behind the earliest point at which a branch left a root, or a branch its parent.
    """
    branches = (parent >= 0).nonzero()[:, 0]
    fork = torch.full_like(parent, length)
    fork = fork.scatter_reduce(0, parent[branches], branch_position[branches] + 1, "amin")
    return torch.where(parent >= 0, torch.minimum(fork, branch_position + 1), fork)

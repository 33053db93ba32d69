"""What is logged of branches, and of the trees that they make."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Trajectory
from appo.functional import tree_roots
from appo.rollouts.data import IterationData

Columns = dict[str, Tensor]
"""``[N]`` float32 values by name, one for each thing that there is of a kind; the order is of no meaning."""

BRANCH_MEANS = (
    "branch_echo",
    "branch_in_answer",
    "branch_contrast",
    "flat_trees",
    "trained_share",
    "score_concentration",
)
"""Columns whose mean is a metric of their name: of branches, trees with one, sampled tokens, scored rows."""

_TOP = 0.1
"""Share of a row's tokens, those of the largest scores, that the concentration of scores looks at."""


def branch_columns(collected: Sequence[IterationData]) -> Columns:
    """Columns of what branches there are, of the trees, and of the scores that chose them.

    `branch_echo` tells of each branch whether it repeats its parent's ending token for token, `branch_in_answer`
    whether it left inside the parent's answer, and `branch_contrast` by how much the parent's reward is above its own:
    0 in the mean, were points chosen without a look at what the parent did there.
    """
    points = [point for part in collected for point in part.points]
    branches = [trajectory for part in collected for trajectory in part.branches]
    return {
        "branches_wanted": to_column(part.num_wanted for part in collected),
        "branch_score": to_column(point.score for point in points),
        "branch_depth": to_column(
            (p.position + 1 - p.trajectory.prompt_length) / p.trajectory.response_length for p in points
        ),
        "branch_echo": to_column(map(_is_echo, branches)),
        "branch_in_answer": to_column(flag for part in collected for flag in part.in_answer),
        "branch_contrast": torch.cat([torch.empty(0), *(_contrasts(part.batch) for part in collected)]),
        "flat_trees": to_column(flag for part in collected for flag in _flat_trees(part.batch)),
        "trained_share": torch.cat([torch.empty(0), *(_trained(part.batch) for part in collected)]),
        "score_concentration": to_column(value for part in collected for value in _concentrations(part)),
    }


def to_column(values: Iterable[float]) -> Tensor:
    """One value a thing."""
    return torch.tensor([float(value) for value in values])


def _is_echo(branch: Trajectory) -> bool:
    assert branch.origin is not None
    behind = branch.origin.position + 1
    return torch.equal(branch.token_ids[behind:], branch.origin.trajectory.token_ids[behind:])


def _contrasts(batch: TrajectoryBatch) -> Tensor:
    """``[N]`` reward of the parent minus that of the branch."""
    return (batch.rewards[batch.parent.clamp(min=0)] - batch.rewards)[batch.parent >= 0].float()


def _flat_trees(batch: TrajectoryBatch) -> list[bool]:
    """Of each tree with a branch, whether all of its rewards are equal."""
    root = tree_roots(batch.parent)
    trees = [batch.rewards[root == number] for number in root[batch.is_branch].unique()]
    return [bool((rewards == rewards[0]).all()) for rewards in trees]


def _trained(batch: TrajectoryBatch) -> Tensor:
    """``[N]`` of each token that was sampled, whether it is trained."""
    return batch.trained[batch.response_mask & batch.is_own].float()


def _concentrations(data: IterationData) -> list[float]:
    """Of each scored row, the share of its squared scores on the tenth of its tokens with the largest ones."""
    found = []
    rows, width = data.scores.values.shape
    for row, mask in zip(data.scores.values, data.batch.response_mask[:rows, :width], strict=True):
        squares = row[mask & row.isfinite()].square().sort(descending=True).values
        if len(squares) and squares[0] > 0.0:
            found.append(float(squares[: ceil(_TOP * len(squares))].sum() / squares.sum()))
    return found

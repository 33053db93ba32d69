"""The choice of branch points under a budget."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Scope = Literal["per_prompt", "per_trajectory"]
"""What a budget is given to: all trajectories of a prompt together, or each trajectory."""


class ChosenPoints(NamedTuple):
    """Branch points in the order they were chosen: `K` of them, prompt by prompt.

    Attributes:
        rows: ``[K]`` int64, trajectory to branch from.
        positions: ``[K]`` int64, position chosen.
        scores: ``[K]``, what the scorer gave it.
    """

    rows: Tensor
    positions: Tensor
    scores: Tensor


def select_branch_points(
    scores: Tensor,
    preferred: Tensor | None,
    candidates: Tensor,
    group: Tensor,
    *,
    budget: int,
    scope: str = "per_prompt",
    fallback: bool = True,
    repeat: bool = False,
) -> ChosenPoints:
    """Takes the best candidates of every prompt, preferred ones first.

    Within a budget, preferred candidates come by descending score, then the others likewise; equal scores come by row,
    then position. Prompts come in the order of their first row. A shortage is no error: what there is is returned.

    Args:
        scores: ``[B, T]``, higher is better; ``-inf`` and NaN are never chosen.
        preferred: ``[B, T]`` bool, chosen before any other; None treats all alike.
        candidates: ``[B, T]`` bool, positions that may be chosen at all.
        group: ``[B]`` int64, rows with the same value answer the same prompt.
        budget: points of a prompt, or of a trajectory if `scope` says so.
        scope: `per_prompt` or `per_trajectory`.
        fallback: also takes candidates that are not preferred when the preferred ones do not suffice.
        repeat: fills the rest of a budget with the chosen points again, in their order.

    Returns:
        Rows, positions and scores of the chosen points.

    Raises:
        ValueError: if the budget is negative or the scope unknown.
    """
    if budget < 0:
        raise ValueError(f"budget must not be negative, got {budget}")
    eligible = candidates & (scores > float("-inf"))
    if preferred is not None and not fallback:
        eligible = eligible & preferred
    rows, positions = eligible.nonzero(as_tuple=True)
    values = scores[rows, positions]
    # Sorted by the last criterion first: what a stable sort finds equal keeps the order of the sorts before it, and
    # `nonzero` has put equal scores in the order of rows and positions.
    order = values.argsort(descending=True, stable=True)
    if preferred is not None:
        order = order[preferred[rows, positions][order].logical_not().to(torch.uint8).argsort(stable=True)]
    unit_of_row = _budget_units(group, scope)
    order = order[unit_of_row[rows][order].argsort(stable=True)]
    available = torch.bincount(unit_of_row[rows], minlength=len(group))
    order = order[_take(available, budget, repeat)]
    return ChosenPoints(rows[order], positions[order], values[order])


def _budget_units(group: Tensor, scope: str) -> Tensor:
    """``[B]`` number of the budget that each row draws on, in the order in which budgets are served."""
    _, index = group.unique(return_inverse=True)
    rows = torch.arange(len(group), device=group.device)
    first_row = rows.scatter_reduce(0, index, rows, "amin", include_self=False)[index]
    if scope == "per_prompt":
        return first_row
    if scope == "per_trajectory":
        return first_row.argsort(stable=True).argsort()
    raise ValueError(f"scope must be per_prompt or per_trajectory, got {scope!r}")


def _take(available: Tensor, budget: int, repeat: bool) -> Tensor:
    """Indices of the first `budget` items of each run of `available` items; from its start again if `repeat`."""
    distinct = available.clamp(max=budget)
    taken = torch.where(distinct > 0, budget, 0) if repeat else distinct
    run = torch.arange(len(available), device=available.device).repeat_interleave(taken)
    number = torch.arange(len(run), device=available.device) - (taken.cumsum(0) - taken)[run]
    # Beyond the distinct items of a run its numbers begin again at 0.
    return (available.cumsum(0) - available)[run] + number % distinct[run]

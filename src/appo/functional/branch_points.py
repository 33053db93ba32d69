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
    budget: int | Tensor,
    scope: str = "per_prompt",
    fallback: bool = True,
    repeat: bool = False,
    min_distance: int = 1,
    penalty: float = 0.0,
) -> ChosenPoints:
    """Takes the best candidates of every prompt, preferred ones first.

    Within a budget, preferred candidates come by descending score, then the others likewise; equal scores come by row,
    then position. Prompts come in the order of their first row; with a budget for each trajectory, the best point of
    each comes first, then the second best. So a smaller budget takes the first points of a larger one. A shortage is no
    error: what there is is returned.

    Args:
        scores: ``[B, T]``, higher is better; ``-inf`` and NaN are never chosen.
        preferred: ``[B, T]`` bool, chosen before any other; None treats all alike.
        candidates: ``[B, T]`` bool, positions that may be chosen at all.
        group: ``[B]`` int64, rows with the same value answer the same prompt.
        budget: points of a prompt, or of a trajectory if `scope` says so; or ``[B]`` int64, that of each row, which is
            the same on all rows that share one.
        scope: `per_prompt` or `per_trajectory`.
        fallback: also takes candidates that are not preferred when the preferred ones do not suffice.
        repeat: fills the rest of a budget with the chosen points again, in their order.
        min_distance: positions by which points of a row must lie apart.
        penalty: taken off the scores of a row for each point that has been chosen on it.

    Returns:
        Rows, positions and scores, without penalty, of the chosen points.

    Raises:
        ValueError: if a budget is negative or the scope unknown.
    """
    if scope not in ("per_prompt", "per_trajectory"):
        raise ValueError(f"scope must be per_prompt or per_trajectory, got {scope!r}")
    budgets = torch.as_tensor(budget).expand(len(group)).tolist()
    if budgets and min(budgets) < 0:
        raise ValueError(f"budget must not be negative, got {min(budgets)}")
    eligible = candidates & (scores > float("-inf"))
    tiers = [eligible] if preferred is None else [eligible & preferred, eligible & ~preferred]
    if preferred is not None and not fallback:
        tiers.pop()
    rows: list[int] = []
    positions: list[int] = []
    for units in _units(group, scope):
        of_prompt: list[tuple[int, int, int]] = []
        for unit in units:
            budget_of = budgets[int(unit[0])]
            chosen = _best(scores[unit], [tier[unit] for tier in tiers], budget_of, min_distance, penalty)
            if repeat and chosen:
                chosen = [chosen[number % len(chosen)] for number in range(budget_of)]
            of_prompt += [(place, int(unit[row]), position) for place, (row, position) in enumerate(chosen)]
        if len(units) > 1:
            of_prompt.sort(key=lambda point: point[0])
        rows += [row for _, row, _ in of_prompt]
        positions += [position for _, _, position in of_prompt]
    chosen_rows, chosen_positions = torch.tensor(rows, dtype=torch.int64), torch.tensor(positions, dtype=torch.int64)
    return ChosenPoints(chosen_rows, chosen_positions, scores[chosen_rows, chosen_positions])


def _units(group: Tensor, scope: str) -> list[list[Tensor]]:
    """The rows of each budget of each prompt, ``[R]`` int64, the prompts in the order of their first rows."""
    of_prompt: dict[int, list[int]] = {}
    for row, number in enumerate(group.tolist()):
        of_prompt.setdefault(number, []).append(row)
    if scope == "per_prompt":
        return [[torch.tensor(rows)] for rows in of_prompt.values()]
    return [[torch.tensor([row]) for row in rows] for rows in of_prompt.values()]


def _best(scores: Tensor, tiers: list[Tensor], budget: int, min_distance: int, penalty: float) -> list[tuple[int, int]]:
    """Rows and positions of the best points of one budget, one after the other.

    Args:
        scores: ``[R, T]``.
        tiers: ``[R, T]`` bool each; those of the first are taken as long as there are any.
        budget: how many.
        min_distance: positions by which points of a row must lie apart.
        penalty: for each point of the row.
    """
    chosen: list[tuple[int, int]] = []
    for tier in tiers:
        values = scores.where(tier, float("-inf"))
        for row, position in chosen:
            _take(values, row, position, min_distance, penalty)
        while len(chosen) < budget:
            # The first of equal values, in the order of rows and positions.
            row, position = divmod(int(values.argmax()), values.shape[1])
            if values[row, position] == float("-inf"):
                break
            chosen.append((row, position))
            _take(values, row, position, min_distance, penalty)
    return chosen


def _take(values: Tensor, row: int, position: int, min_distance: int, penalty: float) -> None:
    values[row, max(0, position - min_distance + 1) : position + min_distance] = float("-inf")
    values[row] -= penalty

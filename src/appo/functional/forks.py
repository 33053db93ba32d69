"""Values along trees: what the endings that leave a point are worth, from the leaves up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf

from torch import Tensor

Combine = Callable[[Sequence[float]], float]
"""The value of a point from those of the endings that leave there."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a row between two points at which its tree forks.

    Attributes:
        row: for which its tokens were sampled.
        start: its first position.
        value: of the point where it ends, or the reward of the row if that is its end.
        others: values of the other segments that begin at the same point: one a sibling.
    """

    row: int
    start: int
    value: float
    others: tuple[float, ...]


def segments(
    rewards: Tensor, group: Tensor, parent: Tensor, branch_position: Tensor, combine: Combine
) -> list[Segment]:
    """Cuts the rows of trees, of any depth, at the points where branches left, and values each stretch.

    All roots of a prompt leave one point, before its response. From a point on a row leave the branches that begin
    there and the row itself. The value of a point is made of those of the segments that begin there, which is free of
    bias where `combine` is a mean: of several branches behind one ending, each tells of that ending alone.

    Args:
        rewards: ``[B]``.
        group: ``[B]`` int64, rows with the same value answer the same prompt.
        parent: ``[B]`` int64, row a branch left; negative for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; read for branches only.
        combine: values of the segments that begin at a point, the row's own first, to the value of the point.

    Returns:
        All segments; those of a row in their order.
    """
    worth, parents, positions = rewards.tolist(), parent.tolist(), branch_position.tolist()
    leaving: dict[tuple[int, int], list[int]] = {}
    for row, origin in enumerate(parents):
        if origin >= 0:
            leaving.setdefault((origin, positions[row]), []).append(row)
    points: dict[int, list[int]] = {}
    for row, position in sorted(leaving):
        points.setdefault(row, []).append(position)
    first_values: dict[int, float] = {}
    found: dict[int, list[Segment]] = {row: [] for row in range(len(parents))}
    # The value of a row's first segment is known once those behind it are; trees may be as deep as there are rows.
    for row in _leaves_first(parents):
        value = worth[row]
        for position in reversed(points.get(row, [])):
            branches = leaving[row, position]
            values = [value, *(first_values[branch] for branch in branches)]
            for number, begun in enumerate([row, *branches]):
                others = tuple(values[:number] + values[number + 1 :])
                found[begun].insert(0, Segment(begun, position + 1, values[number], others))
            value = combine(values)
        first_values[row] = value
    of_prompt: dict[int, list[int]] = {}
    for row, number in enumerate(group.tolist()):
        if parents[row] < 0:
            of_prompt.setdefault(number, []).append(row)
    for roots in of_prompt.values():
        for root in roots:
            others = tuple(first_values[other] for other in roots if other != root)
            found[root].insert(0, Segment(root, 0, first_values[root], others))
    return [segment for of_row in found.values() for segment in of_row]


def _leaves_first(parents: Sequence[int]) -> list[int]:
    """All rows, branches before the rows that they left."""
    children: dict[int, list[int]] = {}
    for row, origin in enumerate(parents):
        children.setdefault(origin if origin >= 0 else -1, []).append(row)
    order, waiting = [], [*children.get(-1, [])]
    while waiting:
        row = waiting.pop()
        order.append(row)
        waiting += children.get(row, [])
    return order[::-1]


def softmax_mean(values: Sequence[float], temperature: float) -> float:
    """The mean of values weighted by ``softmax(values / temperature)``.

    Args:
        values: at least one.
        temperature: above 0; infinite, it weighs all values alike.
    """
    if temperature == inf:
        return sum(values) / len(values)
    highest = max(values)
    weights = [exp((value - highest) / temperature) for value in values]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)

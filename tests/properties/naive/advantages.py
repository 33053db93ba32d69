"""What each advantage estimator computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import Any

from tests.properties.naive.common import EPS, Row, z_scores, z_scores_within


def of_trained(rows: list[Row], advantage: Callable[[int, int], float]) -> list[list[float]]:
    """Advantages by row and position; 0 where nothing was sampled."""
    return [[advantage(i, t) if t in row.sampled else 0.0 for t in range(row.width)] for i, row in enumerate(rows)]


def branches_at(rows: list[Row], row: int, t: int) -> list[int]:
    """The branches of an initial trajectory that share its position `t`."""
    return [j for j, other in enumerate(rows) if other.parent == row and t <= other.branch_position]


def by_prompt(rows: list[Row], std: str) -> list[float]:
    """Rewards compared with all others of their prompt."""
    return z_scores_within([row.reward for row in rows], [row.group for row in rows], std)


def group_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """GRPO; with `std` of `none`, Dr. GRPO."""
    advantages = by_prompt(rows, estimator.std)
    return of_trained(rows, lambda i, t: advantages[i])


def leave_one_out(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """RLOO."""

    def advantage(i: int, t: int) -> float:
        others = [row.reward for j, row in enumerate(rows) if j != i and row.group == rows[i].group]
        return rows[i].reward - mean(others) if others else 0.0

    return of_trained(rows, advantage)


def global_batch_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """REINFORCE++ with the prompt's mean as baseline."""
    centered = by_prompt(rows, "none")
    spread = math.sqrt(mean([value**2 for value in centered]))
    return of_trained(rows, lambda i, t: centered[i] / (spread + EPS))


def tree_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """Tree-GRPO: within the prompt plus within the tree."""
    rewards, trees = (
        [row.reward for row in rows],
        [i if row.parent is None else row.parent for i, row in enumerate(rows)],
    )
    between, within = by_prompt(rows, estimator.std), z_scores_within(rewards, trees, estimator.std)
    return of_trained(rows, lambda i, t: between[i] + within[i])


def entropy_aware_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """AEPO: uncertain tokens count more."""
    places = [(i, t) for i, row in enumerate(rows) for t in row.sampled]
    z_entropy = dict(zip(places, z_scores([rows[i].entropies[t] for i, t in places]), strict=True))
    advantages = by_prompt(rows, estimator.std)
    return of_trained(rows, lambda i, t: advantages[i] * (1 + estimator.weight * z_entropy[i, t]))


def shared_prefix_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """ARPO, hard: a token that several trajectories share has their mean advantage."""
    advantages = by_prompt(rows, estimator.std)

    def advantage(i: int, t: int) -> float:
        parent = rows[i].parent
        root = i if parent is None else parent if t <= rows[i].branch_position else None
        sharing = [i] if root is None else [root, *branches_at(rows, root, t)]
        return sum(advantages[j] for j in sharing) / len(sharing)

    return of_trained(rows, advantage)


def procedural_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """APPO: initial trajectories and branches apart, plus the mean advantage of the branches that share the token."""
    kinds = [(row.group, row.parent is None) for row in rows]
    advantages = z_scores_within([row.reward for row in rows], kinds, estimator.std)

    def advantage(i: int, t: int) -> float:
        if rows[i].parent is not None:
            return 0.0
        sharing = [advantages[j] for j in branches_at(rows, i, t)]
        return advantages[i] + (sum(sharing) / len(sharing) if sharing else 0.0)

    return of_trained(rows, advantage)

"""What each advantage estimator computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, pstdev, stdev
from typing import Any

from tests.properties.naive.common import EPS, Row, z_scores, z_scores_within
from tests.properties.naive.scorers import turn_gains


def of_trained(rows: list[Row], advantage: Callable[[int, int], float]) -> list[list[float]]:
    """Advantages by row and position; 0 where nothing was sampled."""
    return [[advantage(i, t) if t in row.sampled else 0.0 for t in range(row.width)] for i, row in enumerate(rows)]


def owner(rows: list[Row], row: int, t: int) -> int:
    """The row that a token was sampled for."""
    while rows[row].parent is not None and t <= rows[row].branch_position:
        row = rows[row].parent
    return row


def sharing(rows: list[Row], row: int, t: int) -> list[int]:
    """All rows that share a token."""
    return [j for j in range(len(rows)) if owner(rows, j, t) == owner(rows, row, t)]


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
        [owner(rows, i, -1) for i in range(len(rows))],
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
        return mean([advantages[j] for j in sharing(rows, i, t)])

    return of_trained(rows, advantage)


def procedural_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """APPO's release: roots and branches apart, plus the mean advantage of the branches that share the token."""
    kinds = [(row.group, row.parent is None) for row in rows]
    advantages = z_scores_within([row.reward for row in rows], kinds, estimator.std)

    def advantage(i: int, t: int) -> float:
        own = owner(rows, i, t)
        others = [advantages[j] for j in sharing(rows, i, t) if j != own]
        return advantages[own] + (mean(others) if others else 0.0)

    return of_trained(rows, advantage)


def dual_group_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """APPO's paper, Eq. (6): the own reward by the roots and by the branches, averaged."""

    def by(members: list[float], reward: float) -> float:
        if estimator.std == "none":
            return reward - mean(members)
        if len(set(members)) == 1:
            return 0.0
        spread = pstdev(members) if estimator.std == "population" else stdev(members)
        return (reward - mean(members)) / (spread + EPS)

    def of_row(row: Row) -> float:
        prompt = [other for other in rows if other.group == row.group]
        groups = [[other.reward for other in prompt if (other.parent is None) == is_root] for is_root in (True, False)]
        return mean([by(group, row.reward) for group in groups if group])

    advantages = [of_row(row) for row in rows]
    return of_trained(rows, lambda i, t: advantages[i])


def children(rows: list[Row], row: int, position: int) -> list[int]:
    """The branches that left a row at a position."""
    return [j for j, other in enumerate(rows) if other.parent == row and other.branch_position == position]


def worth(rows: list[Row], row: int, behind: int, combine: Callable[[list[float]], float]) -> float:
    """What an ending is worth: its reward, or the value of the next point on it."""
    points = [other.branch_position for other in rows if other.parent == row and other.branch_position > behind]
    if not points:
        return rows[row].reward
    begun = [row, *children(rows, row, min(points))]
    return combine([worth(rows, each, min(points), combine) for each in begun])


def endings(rows: list[Row], row: int, t: int, combine: Callable[[list[float]], float]) -> tuple[float, list[float]]:
    """The value of the ending that a token is part of, and those of the others that leave the point before it."""
    own = owner(rows, row, t)
    points = [other.branch_position for other in rows if other.parent == own and other.branch_position < t]
    parent = rows[own].parent
    if points:
        place = max(points)
        begun = [own, *children(rows, own, place)]
    elif parent is not None:
        place = rows[own].branch_position
        begun = [parent, *children(rows, parent, place)]
    else:
        place = -1
        begun = [j for j, other in enumerate(rows) if other.parent is None and other.group == rows[own].group]
    values = {each: worth(rows, each, place, combine) for each in begun}
    return values[own], [value for each, value in values.items() if each != own]


def sibling_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """BPO: each ending against the mean of the others."""

    def advantage(i: int, t: int) -> float:
        value, others = endings(rows, i, t, mean)
        return value - mean(others) if others else 0.0

    return of_trained(rows, advantage)


def segment_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """VinePPO, SPO: the next point's value minus that of the point before."""

    def advantage(i: int, t: int) -> float:
        value, others = endings(rows, i, t, mean)
        is_sure = estimator.max_probability < 1 and math.exp(rows[i].old[t]) >= estimator.max_probability
        return 0.0 if is_sure else value - mean([value, *others])

    return of_trained(rows, advantage)


def node_value_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """AT2PO: the same with values that lean towards the better endings."""

    def combine(values: list[float]) -> float:
        weights = [math.exp(value / estimator.temperature) for value in values]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    def advantage(i: int, t: int) -> float:
        value, others = endings(rows, i, t, combine)
        return value - combine([value, *others])

    return of_trained(rows, advantage)


def anchor_state_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """GiGPO: trajectories against those of the prompt, steps against those that began in the same state."""
    between = by_prompt(rows, estimator.std)
    steps = [turns_of(row) for row in rows]
    places = [(i, k) for i, of_row in enumerate(steps) for k in range(len(of_row))]
    returns = [rows[i].reward * estimator.discount ** (len(steps[i]) - 1 - k) for i, k in places]
    states = [(rows[i].group, tuple(steps[i][k][0])) for i, k in places]
    within = dict(zip(places, z_scores_within(returns, states, estimator.std), strict=True))

    def advantage(i: int, t: int) -> float:
        (number,) = [k for k, (_, positions) in enumerate(steps[i]) if t in positions]
        return between[i] + estimator.weight * within[i, number]

    return of_trained(rows, advantage)


def turns_of(row: Row) -> list[tuple[list[int], list[int]]]:
    """For each turn, the token ids between it and the turn before, and its positions."""
    turns: list[tuple[list[int], list[int]]] = []
    observed: list[int] = []
    for t in range(row.prompt_length, row.length):
        if t not in row.sampled:
            observed.append(row.token_ids[t])
        elif turns and turns[-1][1][-1] == t - 1:
            turns[-1][1].append(t)
        else:
            turns.append((observed, [t]))
            observed = []
    return turns


def information_gain_advantage(estimator: Any, rows: list[Row]) -> list[list[float]]:
    """IGPO: gains of turns and outcomes, standardized over the prompt, summed over later turns."""
    rewards = [[*turn_gains(estimator.opening, row)[:-1], row.reward] for row in rows]
    places = [(i, k) for i, of_row in enumerate(rewards) for k in range(len(of_row))]

    def kind(i: int, k: int) -> tuple[int, bool]:
        return rows[i].group, estimator.normalization == "separate" and k == len(rewards[i]) - 1

    scores = z_scores_within([rewards[i][k] for i, k in places], [kind(i, k) for i, k in places], estimator.std)
    score_of = dict(zip(places, scores, strict=True))

    def advantage(i: int, t: int) -> float:
        (number,) = (k for k, turn in enumerate(turns_of(rows[i])) if t in turn[1])
        later = range(number, len(rewards[i]))
        return sum(estimator.discount ** (k - number) * score_of[i, k] for k in later)

    return of_trained(rows, advantage)

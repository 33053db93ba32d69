"""Trajectories in numbers, and the few formulas that several definitions use."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev, stdev

from appo.core.batch import NO_PARENT, TrajectoryBatch

EPS = 1e-6


@dataclass(frozen=True)
class Row:
    """One trajectory in numbers; lists are by position."""

    length: int
    sampled: list[int]
    behavior: list[float]
    old: list[float]
    entropies: list[float]
    reward: float
    group: int
    parent: int | None
    branch_position: int
    branch_score: float
    versions: list[int]
    evaluated_by: int
    sampling: list[float]
    token_ids: list[int]
    prompt_length: int

    @property
    def width(self) -> int:
        """Positions, padding included."""
        return len(self.behavior)


def rows_of(batch: TrajectoryBatch) -> list[Row]:
    """The batch in numbers."""
    return [
        Row(
            length=int(batch.lengths[row]),
            sampled=batch.response_mask[row].nonzero()[:, 0].tolist(),
            behavior=batch.behavior_log_probs[row].tolist(),
            old=batch.old_log_probs[row].tolist(),
            entropies=batch.entropies[row].tolist(),
            reward=batch.rewards[row].item(),
            group=int(batch.group[row]),
            parent=None if batch.parent[row] == NO_PARENT else int(batch.parent[row]),
            branch_position=int(batch.branch_position[row]),
            branch_score=batch.branch_score[row].item(),
            versions=batch.policy_versions[row].tolist(),
            evaluated_by=int(batch.evaluated_by[row]),
            token_ids=batch.token_ids[row].tolist(),
            prompt_length=int(batch.prompt_lengths[row]),
            sampling=(batch.behavior_log_probs if batch.sampling_log_probs is None else batch.sampling_log_probs)[
                row
            ].tolist(),
        )
        for row in range(len(batch.lengths))
    ]


# `statistics` computes in fractions: equal numbers deviate from their mean by exactly 0.
def z_scores(values: Sequence[float], std: str = "population") -> list[float]:
    """Deviations from the mean, over the standard deviation plus `EPS` unless `std` is `none`."""
    center = mean(values)
    if std == "none":
        return [value - center for value in values]
    spread = pstdev(values) if std == "population" else stdev(values) if len(values) > 1 else 0.0
    return [(value - center) / (spread + EPS) for value in values]


def z_scores_within(values: Sequence[float], keys: Sequence[Hashable], std: str) -> list[float]:
    """Z-scores among the values with the same key."""
    scores = [0.0] * len(values)
    for key in set(keys):
        members = [i for i, other in enumerate(keys) if other == key]
        for i, score in zip(members, z_scores([values[i] for i in members], std), strict=True):
            scores[i] = score
    return scores


def bounded(value: float, lowest: float, highest: float) -> float:
    """The nearest value in a range."""
    return max(lowest, min(highest, value))


def future(log_ratio: Mapping[int, float], t: int, discount: float) -> float:
    """The discounted sum of the log-ratios from `t` on; distances count all positions, sampled or not."""
    return sum(discount ** (k - t) * value for k, value in log_ratio.items() if k >= t)


def likelihood_gain(
    log_ratio: Mapping[int, float], t: int, discount: float, clip: float, lowest: float | None = None
) -> float:
    """How much likelier what follows from `t` on has become."""
    gain = math.exp(bounded(future(log_ratio, t, discount), -20, 20))
    return bounded(gain, 1 - clip if lowest is None else lowest, 1 + clip) if clip > 0 else gain

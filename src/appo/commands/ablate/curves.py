"""The learning curves of runs: which metric they are of, their points, and the areas under them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from appo.commands.ablate.costs import TOKENS
from appo.commands.ablate.execution import Result
from appo.commands.ablate.spec import AblationSpec
from appo.commands.ablate.statistics import mean_heights

_ALWAYS_LOGGED = "rollout/reward_initial_mean"
"""Of roots alone: a branch goes on from what its parent has done, so means over all trajectories cannot be compared."""


def curve_metric(results: Sequence[Result], spec: AblationSpec) -> str:
    """The metric whose curve is drawn: the one that is compared as all runs have logged it, else the reward.

    Args:
        results: finished trainings.
        spec: of the ablation.
    """
    if spec.curve is not None:
        return spec.curve
    kind, _, name = spec.metric.partition("/")
    candidate = f"validation/{name}" if kind == "test" else spec.metric
    return candidate if all(len(curve_points(result, candidate)) > 1 for result in results) else _ALWAYS_LOGGED


def curve_points(result: Result, metric: str) -> list[tuple[float, float]]:
    """Generated tokens and metric after every iteration that has logged it."""
    return [(row[TOKENS], row[metric]) for row in result.history if TOKENS in row and metric in row]


def areas_by_run(results: Sequence[Result], spec: AblationSpec) -> dict[str, dict[int, float]]:
    """The mean height of every run's curve over the tokens that all runs cover, by combination and seed.

    Args:
        results: finished trainings.
        spec: of the ablation.

    Returns:
        No seeds where the runs have no curve in common.
    """
    areas: dict[str, dict[int, float]] = {combination.name: {} for combination in spec.combinations}
    metric = curve_metric(results, spec)
    points = {(r.run.combination, r.run.seed): found for r in results if (found := curve_points(r, metric))}
    for (name, seed), area in zip(points, mean_heights(list(points.values())) if points else (), strict=True):
        if not math.isnan(area):
            areas[name][seed] = area
    return areas

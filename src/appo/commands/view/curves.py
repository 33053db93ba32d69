"""Curves over the iterations of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PHASE = "_s"


@dataclass(frozen=True)
class Chart:
    """Metrics that share an axis.

    Attributes:
        title: what is drawn.
        unit: of the axis.
        lines: names of metrics, and what a person calls them.
    """

    title: str
    unit: str
    lines: Mapping[str, str]


CHARTS = (
    Chart(
        "Reward",
        "",
        {"rollout/reward_initial_mean": "roots", "rollout/reward_branch_mean": "branches"},
    ),
    Chart("Accuracy", "share", {"rollout/accuracy": "training", "validation/accuracy": "validation"}),
    Chart("Entropy", "nats", {"rollout/entropy": "of sampled tokens"}),
    Chart(
        "Branches that say nothing",
        "share",
        {"rollout/branch_echo": "echo their parent", "rollout/flat_trees": "trees of equal rewards"},
    ),
    Chart(
        "Zero-variance groups",
        "share",
        {"rollout/flat_groups_initial": "of roots", "rollout/flat_groups_branch": "of branches"},
    ),
    Chart(
        "Depth of branch points",
        "share of the response",
        {
            "rollout/branch_depth_q10": "first tenth",
            "rollout/branch_depth_q50": "median",
            "rollout/branch_depth_q90": "last tenth",
        },
    ),
    Chart("Response length", "tokens", {"rollout/response_length": "mean"}),
    Chart("Tool calls", "a trajectory", {"rollout/tool_calls": "calls", "rollout/tool_failures": "share that fails"}),
    Chart("Speed of sampling", "tokens a second", {"rollout/tokens_per_s": "tokens a second"}),
    Chart(
        "Gradient",
        "",
        {"train/grad_norm": "norm", "train/clip_fraction_high": "clipped above", "train/clip_fraction_low": "below"},
    ),
)

_NO_PHASES = ("iteration_s", "tokens_per_s")


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The charts of a run that have a value: `x`, iterations, and of each chart its lines, null where one has a gap.

    Args:
        history: metrics of every iteration.
    """
    charts = [*CHARTS, Chart("Time by phase", "seconds an iteration", _phases(history))]
    drawn = []
    for chart in charts:
        lines = [
            {"label": label, "y": [_short(row.get(name)) for row in history]}
            for name, label in chart.lines.items()
            if any(name in row for row in history)
        ]
        if lines:
            drawn.append({"title": chart.title, "unit": chart.unit, "lines": lines})
    return {"x": [int(row["epoch"]) for row in history], "charts": drawn}


def _phases(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Those that take time, the longest ones first."""
    totals: dict[str, float] = {}
    for row in history:
        for name, value in row.items():
            phase = name.removeprefix("rollout/")
            if name != phase and phase.endswith(_PHASE) and phase not in _NO_PHASES:
                totals[name] = totals.get(name, 0.0) + value
    longest = sorted(totals, key=lambda name: -totals[name])[:6]
    return {name: name.removeprefix("rollout/").removesuffix(_PHASE).replace("_", " ") for name in longest}


def _short(value: float | None) -> float | None:
    """To six digits; what JSON cannot say is a gap."""
    return None if value is None or value != value or abs(value) == float("inf") else float(f"{value:.6g}")

"""Curves over the iterations of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
_MOST_PHASES = 6


def curves(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The charts of a run that have a value: `x`, iterations, and of each chart its lines, null where one has a gap.

    Args:
        history: metrics of every iteration.
    """
    drawn = [
        {
            "title": chart.title,
            "unit": chart.unit,
            "lines": [
                {"label": label, "y": [_short(row.get(name)) for row in history]} for name, label in chart.lines.items()
            ],
        }
        for chart in charts_of(history)
    ]
    return {"x": [int(row["epoch"]) for row in history], "charts": drawn}


def charts_of(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """The charts of a run that have a value, with the lines that have one."""
    phases = dict(list(seconds_by_phase(history))[:_MOST_PHASES])
    charts = [*CHARTS, Chart("Time by phase", "seconds an iteration", phases)]
    lines = [{n: label for n, label in chart.lines.items() if any(n in row for row in history)} for chart in charts]
    return [replace(chart, lines=found) for chart, found in zip(charts, lines, strict=True) if found]


def seconds_by_phase(history: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    """Metrics of the phases that take time, and what a person calls them, the longest ones first."""
    totals: dict[str, float] = {}
    for row in history:
        for name, value in row.items():
            phase = name.removeprefix("rollout/")
            if name != phase and phase.endswith(_PHASE) and phase not in _NO_PHASES:
                totals[name] = totals.get(name, 0.0) + value
    for name in sorted(totals, key=lambda name: -totals[name]):
        yield name, name.removeprefix("rollout/").removesuffix(_PHASE).replace("_", " ")


def _short(value: float | None) -> float | None:
    """To six digits; what JSON cannot say is a gap."""
    return None if value is None or value != value or abs(value) == float("inf") else float(f"{value:.6g}")

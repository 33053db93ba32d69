"""A short run, by which others are planned: lengths of trajectories, and how near phases come to their roofline."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median_high
from typing import Any

from appo.commands.plan.time import Lengths
from appo.commands.record.record import FILE, RunRecord
from appo.monitoring.trajectory_files import read_trajectories

_MEASURED: Mapping[str, tuple[str, ...]] = {
    "sampling": ("sampling_s", "branching_s"),
    "log-probs": ("log_probs_s", "reference_s"),
    "update": ("update_s",),
    "weight sync": ("weights_s",),
}
"""Metrics of a run by the phases of a plan; the rest of an iteration is that of tools and others."""


@dataclass(frozen=True)
class Probe:
    """What a short run says.

    Attributes:
        lengths: of its trajectories.
        seconds: of an iteration by phase, the median over iterations but the first.
        other_s: of an iteration, in none of those phases.
        config: of the run.
        processes: that it had.
    """

    lengths: Lengths
    seconds: Mapping[str, float]
    other_s: float
    config: Mapping[str, Any]
    processes: int

    @classmethod
    def of(cls, folder: Path) -> Probe:
        """Of the folder of a run.

        Raises:
            ValueError: if it holds no whole iteration with its trajectories.
        """
        versions = sorted(folder.glob(f"csv/version_*/{FILE}"), key=lambda path: path.stat().st_mtime)
        files = sorted(folder.glob("trajectories/iteration_*.jsonl.zst"))
        if not versions or not files:
            raise ValueError(f"probe must be the folder of a run of appo fit that has saved trajectories, got {folder}")
        record, rows = RunRecord.read(versions[-1]), _iterations(versions[-1].with_name("metrics.csv"))
        if not rows:
            raise ValueError(f"probe must have a whole iteration, got {folder} with none")
        # The first one warms up.
        kept = rows[1:] or rows
        seconds = {phase: median_high([_sum(row, names) for row in kept]) for phase, names in _MEASURED.items()}
        totals = [row["rollout/iteration_s"] for row in kept]
        other_s = max(0.0, median_high(totals) - sum(seconds.values()))
        return cls(_lengths(files[-1]), seconds, other_s, record.config, record.processes)


def _iterations(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if "rollout/iteration_s" in row]


def _sum(row: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(row.get(f"rollout/{name}", 0.0) for name in names)


def _lengths(path: Path) -> Lengths:
    """Those of the trajectories of an iteration."""
    records = list(read_trajectories(path))
    roots = [record for record in records if record["parent_id"] is None]
    sampled = [sum(record["response_mask"]) for record in roots]
    tools = [
        len(record["token_ids"]) - len(record["prompt"]["token_ids"]) - sum(record["response_mask"]) for record in roots
    ]
    branches = [record for record in records if record["parent_id"] is not None]
    shares = [sum(record["response_mask"][record["branch_position"] :]) / fmean(sampled) for record in branches]
    return Lengths(
        fmean(len(record["prompt"]["token_ids"]) for record in roots),
        fmean(sampled),
        fmean(tools),
        max(sampled),
        min(1.0, fmean(shares)) if shares else 0.5,
    )

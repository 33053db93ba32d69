"""Trajectories and metrics of a run as files, for looking at later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from appo.rollouts import NOT_MEASURED, Evaluated, Rollouts, TrajectoryWriter, trajectory_record
from appo.rollouts.records import Record


def write_rollouts(path: Path, rounds: Sequence[Rollouts]) -> None:
    """Writes all trajectories of an iteration with what was measured, scored and credited.

    ``id`` counts within the file; a branch names its parent by ``parent_id``.

    Args:
        path: of the file.
        rounds: all rollouts of the iteration.
    """
    with TrajectoryWriter(path) as writer:
        first_id = 0
        for rollouts in rounds:
            writer.write(_records(rollouts, first_id))
            first_id += len(rollouts.trajectories)


def write_evaluated(path: Path, batches: Iterable[Evaluated]) -> Iterator[Evaluated]:
    """Passes evaluated trajectories on and writes them as they come."""
    with TrajectoryWriter(path) as writer:
        first_id = 0
        for batch in batches:
            writer.write(
                {"id": first_id + i, "parent_id": None, **trajectory_record(trajectory, outcome)}
                for i, (trajectory, outcome) in enumerate(batch)
            )
            first_id += len(batch)
            yield batch


def write_metrics(path: Path, metrics: Mapping[str, Tensor]) -> None:
    """Writes scalars by name as one JSON object, and beside it as a Markdown table.

    Args:
        path: of the JSON file.
        metrics: by name, ``<stage>/<metric>``; those of a part of the data are ``<stage>/<metric>/<part>``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: float(value) for name, value in sorted(metrics.items())}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text("\n".join(_table(values)) + "\n", encoding="utf-8")


def _table(values: Mapping[str, float]) -> list[str]:
    """A row a metric and a column a part of the data, by line; the first column is all of it."""
    split = {name: name.split("/", maxsplit=2)[1:] for name in values}
    parts = sorted({rest[1] for rest in split.values() if len(rest) > 1})
    cells: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        metric, *part = split[name]
        cells.setdefault(metric, {})[part[0] if part else ""] = value
    lines = [" | ".join(["| metric", "all", *parts]) + " |", "|---|" + "---:|" * (len(parts) + 1)]
    for metric, row in cells.items():
        shown = [f"{row[part]:.4g}" if part in row else "" for part in ("", *parts)]
        lines.append(" | ".join([f"| {metric}", *shown]) + " |")
    return lines


def _records(rollouts: Rollouts, first_id: int) -> Iterator[Record]:
    rows = {id(trajectory): first_id + row for row, trajectory in enumerate(rollouts.trajectories)}
    for row, (trajectory, outcome) in enumerate(zip(rollouts.trajectories, rollouts.outcomes, strict=True)):
        origin = trajectory.origin
        record = trajectory_record(trajectory, outcome, _per_token(rollouts, row))
        yield {
            "id": first_id + row,
            "parent_id": None if origin is None else rows[id(origin.trajectory)],
            **record,
        }


def _per_token(rollouts: Rollouts, row: int) -> dict[str, Tensor]:
    length = len(rollouts.trajectories[row])
    values = {"advantages": rollouts.advantages[row, :length]}
    if row < len(rollouts.plan.initial):
        if rollouts.measured_by[row] != NOT_MEASURED:
            values["old_log_probs"] = rollouts.batch.old_log_probs[row, :length]
            values["entropies"] = rollouts.batch.entropies[row, :length]
        values |= {
            "scores": rollouts.plan.scores.values[row, :length],
            **{f"score_{name}": factor[row, :length] for name, factor in rollouts.plan.scores.factors.items()},
        }
    return values

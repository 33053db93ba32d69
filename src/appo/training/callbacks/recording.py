"""Trajectories and metrics of a run as files, for looking at later."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from appo.core.trajectory import RewardResult, Trajectory
from appo.monitoring.evaluation_metrics import Evaluated
from appo.monitoring.trajectory_files import (
    Record,
    TrajectoryWriter,
    significant,
    trajectory_record,
    without_text,
)
from appo.rollouts import IterationData
from appo.training.token_record import TokenRecord, TokenValues

_BY_PART = "accuracy/"
"""How the name of a metric of a part of the data begins."""

_BOUNDS = ("_low", "_high")
"""How the names of the ends of a metric's interval end."""

_ORDER = ("accuracy", "exact_match", "f1", "pass", "maj", "answered", "format", "finished", "reward", "response_length")
"""What a reader looks for first."""


def write_collected(path: Path, collected: Sequence[IterationData], record: TokenRecord | None = None) -> None:
    """Writes all trajectories of an iteration with their log-probs, scores and credit.

    ``id`` counts within the file; a branch names its parent by ``parent_id``.

    Args:
        path: of the file.
        collected: all of the iteration.
        record: has what the update made of the tokens of trained ones, and is emptied.
    """
    updates = {} if record is None else record.pop()
    with TrajectoryWriter(path) as writer:
        first_id = 0
        for data in collected:
            writer.write(_records(data, first_id, updates))
            first_id += len(data.trajectories)


def write_evaluated(path: Path, batches: Iterable[Evaluated]) -> Iterator[Evaluated]:
    """Passes evaluated trajectories on and writes them as they come; without text where the prompt is not public."""
    with TrajectoryWriter(path) as writer:
        first_id = 0
        for batch in batches:
            writer.write(
                {"id": first_id + i, "parent_id": None, **evaluated_record(trajectory, result)}
                for i, (trajectory, result) in enumerate(batch)
            )
            first_id += len(batch)
            yield batch


def evaluated_record(trajectory: Trajectory, result: RewardResult | None) -> Record:
    """What is written of an evaluated trajectory; without text where its prompt is not public."""
    record = trajectory_record(trajectory, result)
    return record if trajectory.prompt.is_public else without_text(record)


def write_metrics(path: Path, metrics: Mapping[str, Tensor]) -> None:
    """Writes scalars by name as one JSON object, and beside it as a Markdown table.

    Args:
        path: of the JSON file.
        metrics: by name, ``<stage>/<metric>``; accuracy on a part of the data is ``<stage>/accuracy/<part>``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: float(value) for name, value in sorted(metrics.items())}
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text("\n".join(_table(values)) + "\n", encoding="utf-8")


def _table(values: Mapping[str, float]) -> list[str]:
    """A row a metric and a column a part of the data, by line; the first column is all of it.

    Accuracy alone is measured by part. Where there is one part, it is all of the data.
    """
    metrics = {name.partition("/")[2]: value for name, value in values.items()}
    parts = sorted(name.removeprefix(_BY_PART) for name in metrics if name.startswith(_BY_PART))
    columns = parts if len(parts) > 1 else []
    lines = [" | ".join(["| metric", parts[0] if len(parts) == 1 else "all", *columns]) + " |"]
    lines.append("|---|" + "---:|" * (len(columns) + 1))
    for name in sorted(metrics, key=_place):
        if name.startswith(_BY_PART) or name.endswith(_BOUNDS):
            continue
        low, high = (metrics.get(f"{name}{bound}") for bound in _BOUNDS)
        interval = "" if low is None or high is None else f" [{_number(low)}, {_number(high)}]"
        by_part = [_number(metrics[f"{_BY_PART}{part}"]) if name == "accuracy" else "" for part in columns]
        lines.append(" | ".join([f"| {name}", f"{_number(metrics[name])}{interval}", *by_part]) + " |")
    return lines


def _place(name: str) -> tuple[int, str, int, str]:
    """Sorts by `_ORDER`, k by its value, and the rest by name behind it."""
    kind, _, k = name.partition("@")
    rank = next((i for i, known in enumerate(_ORDER) if kind == known), len(_ORDER))
    return rank, kind, int(k) if k.isdigit() else 0, name


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"


def _records(data: IterationData, first_id: int, updates: TokenValues) -> Iterator[Record]:
    ids = {id(trajectory): first_id + row for row, trajectory in enumerate(data.trajectories)}
    for row, (trajectory, result) in enumerate(zip(data.trajectories, data.results, strict=True)):
        origin = trajectory.origin
        record = trajectory_record(trajectory, result, _per_token(data, row))
        if data.batch.is_evaluated[row]:
            record["evaluated_by"] = int(data.batch.evaluated_by[row])
        if (update := updates.get(first_id + row)) is not None:
            record |= _update_columns(update, bool(data.batch.is_evaluated[row]))
        yield {
            "id": ids[id(trajectory)],
            "parent_id": None if origin is None else ids[id(origin.trajectory)],
            **record,
        }


def _per_token(data: IterationData, row: int) -> dict[str, Tensor]:
    batch, scores, length = data.batch, data.scores, len(data.trajectories[row])
    assert batch.advantages is not None
    values = {"advantages": batch.advantages[row]}
    if batch.is_evaluated[row]:
        values |= {"old_log_probs": batch.old_log_probs[row], "entropies": batch.entropies[row]}
    if row < len(scores.values):
        values["scores"] = scores.values[row]
        values |= {f"score_{name}": factor[row] for name, factor in scores.factors.items()}
    return {name: value[:length] for name, value in values.items()}


def _update_columns(update: Mapping[str, Tensor], is_evaluated: bool) -> Record:
    """What the update made of each token, to four digits; entropies where nobody had asked for them before."""
    # Importance weights tell trained tokens, which alone have entropies here.
    leaves_out = {"entropies"} if is_evaluated or "importance_weights" not in update else set()
    columns = {name: value.numpy() for name, value in update.items() if name not in leaves_out}
    return {
        name: [
            value if ok else None
            for value, ok in zip(significant(np.nan_to_num(column), 4).tolist(), np.isfinite(column), strict=True)
        ]
        for name, column in columns.items()
    }

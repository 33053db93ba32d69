"""What a run has logged, read back: the metrics of its iterations and of an evaluation."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path


def read_history(run: Path) -> list[dict[str, float]]:
    """The metrics of every iteration of a run, resumed parts put together, in order.

    Raises:
        FileNotFoundError: if there are none.
    """
    iterations: dict[int, dict[str, float]] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                values = {name: float(value) for name, value in row.items() if value}
                iterations.setdefault(int(values["epoch"]), {}).update(values)
    if not iterations:
        raise FileNotFoundError(f"no csv/version_*/metrics.csv with an iteration in {run}")
    return [iterations[number] for number in sorted(iterations)]


def read_evaluation(folder: Path) -> dict[str, float]:
    """The metrics that ``appo test`` wrote.

    Raises:
        FileNotFoundError: if there are none.
    """
    path = folder / "test.json"
    if not path.is_file():
        raise FileNotFoundError(f"no test.json of an appo test in {folder}")
    values: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return values


def smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponential moving average, without the pull of its start towards 0."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result

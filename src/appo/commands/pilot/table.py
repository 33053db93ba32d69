"""The decisions of a pilot study as CSV, for machines."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from appo.commands.pilot.measures import Intervals, Measures

_COLUMNS = (
    "question",
    "source",
    "root",
    "position",
    "depth",
    "part",
    "token_id",
    "token",
    "continuations",
    "tokens_drawn",
    "reward_mean",
    "var_r",
    "var_r_low",
    "var_r_high",
    "influence",
    "influence_low",
    "influence_high",
    "evident_influence",
    "known_influence",
)


def write_positions(path: Path, measured: Sequence[Measures]) -> None:
    """Writes one row for each decision: where it is, what was measured there, and all scores.

    Args:
        path: of the file.
        measured: a question each.
    """
    names = sorted({name for each in measured for name in each.question.scores})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, *(f"score_{name}" for name in names)])
        writer.writerows(_rows(measured, names))


def _rows(measured: Sequence[Measures], names: Sequence[str]) -> Iterator[list[object]]:
    intervals = Intervals.of([each.question for each in measured])
    ends = iter(torch.stack([*intervals.total, *intervals.influence], -1).tolist())
    for each in measured:
        columns = [each.question.scores.get(name) for name in names]
        for number, decision in enumerate(each.question.decisions):
            total_low, total_high, low, high = next(ends)
            mean, total, influence, evident = (float(values[number]) for values in each.whole)
            numbers = (mean, total, total_low, total_high, influence, low, high, evident, decision.known)
            yield [
                each.question.id,
                each.question.source,
                decision.root,
                decision.position,
                _cell(decision.depth),
                decision.part,
                decision.token_id,
                decision.text,
                len(decision.tokens),
                len({*decision.tokens}),
                *map(_cell, numbers),
                *(_cell(None if column is None else column.values[number]) for column in columns),
            ]


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"

"""The learning curves of an ablation as a picture."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from appo.commands.ablate.curves import curve_points
from appo.commands.ablate.execution import Result
from appo.commands.ablate.spec import AblationSpec
from appo.commands.ablate.statistics import FEWEST_SEEDS, LEVEL, Curve, mean_curve
from appo.commands.drawing import COLORS, save_figure, tidy
from appo.monitoring.history import smoothed

log = logging.getLogger(__name__)

_DASHES = ("-", "--", ":", "-.")

_INCHES_PER_LEGEND_ROW = 0.24
_LONGEST_NAME_IN_TWO_COLUMNS = 36


def draw_curves(results: Sequence[Result], metric: str, spec: AblationSpec, paths: Sequence[Path]) -> None:
    """Draws the mean over seeds of every combination's curve, with its t interval as a band.

    Of fewer than `FEWEST_SEEDS` seeds it draws every run instead, thinner than the mean.

    Metrics of rollouts are of other questions in every iteration; each run's are averaged over iterations before.

    Args:
        results: finished trainings, at least one.
        metric: of the curves.
        spec: of the ablation.
        paths: of the pictures; their endings say the format.
    """
    is_smoothed = metric.startswith(("rollout/", "train/"))
    curves: dict[str, Curve] = {}
    for combination in spec.combinations:
        runs = [curve_points(result, metric) for result in results if result.run.combination == combination.name]
        runs = [run for run in runs if run]
        if not runs:
            continue
        if is_smoothed:
            runs = [_smoothed_points(run) for run in runs]
        curve = mean_curve(runs)
        if len(curve.tokens):
            curves[combination.name] = curve
        else:
            log.warning("%s has no %s that all its seeds cover; the figure is without it", combination.name, metric)
    label = metric.replace("_", " ").replace("/", " ", 1) + (" (moving average)" if is_smoothed else "")
    _draw(curves, label, paths)


def _draw(curves: Mapping[str, Curve], label: str, paths: Sequence[Path]) -> None:
    # The picture is an extra that only reports need.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    num_columns = 2 if max(map(len, curves), default=0) <= _LONGEST_NAME_IN_TWO_COLUMNS else 1
    height = 4.2 + _INCHES_PER_LEGEND_ROW * math.ceil(len(curves) / num_columns)
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        color, dash = COLORS[number % len(COLORS)], _DASHES[number // len(COLORS) % len(_DASHES)]
        marker = "o" if len(curve.tokens) == 1 else None
        axes.plot(curve.tokens, curve.mean, label=name, color=color, linestyle=dash, linewidth=1.8, marker=marker)
        if len(curve.runs) >= FEWEST_SEEDS:
            axes.fill_between(curve.tokens, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
        elif len(curve.runs) > 1:
            axes.plot(curve.tokens, curve.runs.T, color=color, linestyle=dash, linewidth=0.7, alpha=0.5)
    axes.set_xlabel("generated tokens")
    axes.set_ylabel(label)
    axes.set_title(_title(curves.values()), fontsize="medium")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    tidy(axes)
    axes.margins(x=0.02)
    if curves:
        figure.legend(loc="outside lower center", ncols=num_columns, frameon=False)
    save_figure(figure, paths)


def _title(curves: Collection[Curve]) -> str:
    num_seeds = {len(curve.runs) for curve in curves}
    parts = ["mean over seeds"]
    if any(1 < number < FEWEST_SEEDS for number in num_seeds):
        parts.append("thin: each seed")
    if any(number >= FEWEST_SEEDS for number in num_seeds):
        parts.append(f"{LEVEL:.0%} t interval")
    return ", ".join(parts)


def _smoothed_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    values = smoothed([value for _, value in points])
    return [(tokens, value) for (tokens, _), value in zip(points, values, strict=True)]

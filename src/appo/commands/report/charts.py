"""The curves of a run: an average over iterations, each iteration, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from appo.commands.ablate.statistics import FEWEST_SEEDS, t_interval
from appo.commands.drawing import COLORS
from appo.commands.report.document import Figure, Section, Text
from appo.commands.report.records import BRANCHES, ROOTS, Branch, RunRecords, Values
from appo.commands.view.curves import Chart, charts_of
from appo.monitoring.history import smoothed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

History = Sequence[Mapping[str, float]]

_BANDS = {
    "rollout/reward_initial_mean": ROOTS,
    "rollout/reward_branch_mean": BRANCHES,
    "rollout/accuracy": "accuracy",
    "rollout/response_length": "response_length",
    "rollout/tool_calls": "tool_calls",
}
"""What is measured of every question, by the metric that is its mean."""

_TENTHS = 10


def curves_section(history: History, records: RunRecords) -> Section:
    """All charts that have a value."""
    text = (
        "Points are iterations, lines their moving average; a band is the 95 % interval of the mean over the questions "
        "of an iteration where it has five or more, its width averaged likewise. Every iteration asks other questions."
    )
    figures = [
        Figure(
            chart.title, _caption(chart, history), partial(_draw, chart=chart, history=history, values=records.values)
        )
        for chart in charts_of(history)
    ]
    return Section("Curves", [Text(text), *figures])


def branches_figure(branches: Sequence[Branch]) -> Figure:
    """How many branches left at each tenth of their parent's response, and how they fared."""
    better, equal, worse = (sum(map(is_one, branches)) for is_one in (_is_better, _is_equal, _is_worse))
    caption = f"{len(branches)} branches: {better} earned more than their parent, {equal} the same, {worse} less."
    return Figure("Where branches left, and how they fared", caption, partial(_draw_depths, branches=branches))


def _is_better(branch: Branch) -> bool:
    return branch.gain > 0.0


def _is_equal(branch: Branch) -> bool:
    return branch.gain == 0.0


def _is_worse(branch: Branch) -> bool:
    return branch.gain < 0.0


def _caption(chart: Chart, history: History) -> str:
    """The first and the last value of each line."""
    parts = []
    for name, label in chart.lines.items():
        values = [row[name] for row in history if name in row]
        parts.append(f"{label} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{chart.title}: {', '.join(parts)}."


def _draw(axes: Axes, chart: Chart, history: History, values: Mapping[int, Values]) -> None:
    from matplotlib.ticker import MaxNLocator

    for (name, label), color in zip(chart.lines.items(), COLORS, strict=False):
        rows = [row for row in history if name in row]
        x, y = [row["epoch"] for row in rows], [row[name] for row in rows]
        axes.plot(x, y, ".", color=color, alpha=0.45, markersize=4)
        line = smoothed(y)
        axes.plot(x, line, color=color, linewidth=1.6, label=label)
        halves = _half_widths(values, _BANDS.get(name, ""))
        known = [place for place, number in enumerate(x) if number in halves]
        widths = np.array(smoothed([halves[x[place]] for place in known]))
        middle = np.array([line[place] for place in known])
        axes.fill_between([x[i] for i in known], middle - widths, middle + widths, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("iteration")
    axes.set_ylabel(chart.unit or chart.title.lower())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(chart.lines) > 1:
        axes.legend(fontsize="small", ncols=2 if len(chart.lines) > 3 else 1)


def _half_widths(values: Mapping[int, Values], measure: str) -> dict[float, float]:
    """Half of the interval of an iteration's mean over its questions, by iteration."""
    halves = {}
    for number, found in values.items():
        if len(of_question := found.get(measure, {})) >= FEWEST_SEEDS:
            low, high = t_interval(np.array(list(of_question.values())))
            halves[float(number)] = float(high - low) / 2
    return halves


def _draw_depths(axes: Axes, branches: Sequence[Branch]) -> None:
    left = np.arange(_TENTHS) / _TENTHS
    floor = np.zeros(_TENTHS)
    for label, is_one, color in (("more", _is_better, 2), ("the same", _is_equal, 5), ("less", _is_worse, 1)):
        depths = [branch.depth for branch in branches if is_one(branch)]
        counts = np.histogram(depths, bins=_TENTHS, range=(0.0, 1.0))[0]
        axes.bar(left, counts, 0.94 / _TENTHS, floor, align="edge", color=COLORS[color], label=label)
        floor = floor + counts
    axes.set_xlabel("share of the parent's response that is shared")
    axes.set_ylabel("branches")
    axes.set_xlim(0.0, 1.0)
    axes.legend(title="earned", fontsize="small", title_fontsize="small")

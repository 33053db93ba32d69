"""The pictures of a pilot study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from appo.commands.drawing import COLORS, save_figure, tidy
from appo.commands.pilot.measures import Measures, order
from appo.commands.pilot.ranking import Criterion
from appo.functional import average_ranks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INFLUENCE, _TOTAL = COLORS[:2]

_COLUMNS = 4
_BINS = 10


def draw_spearman(criteria: Sequence[Criterion], paths: Sequence[Path]) -> None:
    """Draws the rank correlation of every scorer with both variances, with intervals.

    Args:
        criteria: of scorers, best first.
        paths: of the pictures; their endings say the format.
    """
    shown = [each for each in reversed(criteria) if each.influence.num]
    with _figure((7, 1.2 + 0.42 * len(shown)), paths) as figure:
        axes = figure.add_subplot()
        for offset, color, label, attribute in (
            (0.18, _INFLUENCE, "Var_a Q, what this token decides", "influence"),
            (-0.18, _TOTAL, "Var R, all that is open", "total"),
        ):
            estimates = [getattr(each, attribute) for each in shown]
            means = [estimate.mean for estimate in estimates]
            errors = [
                [estimate.mean - estimate.low for estimate in estimates],
                [estimate.high - estimate.mean for estimate in estimates],
            ]
            places = [place + offset for place in range(len(shown))]
            axes.barh(places, means, 0.34, xerr=errors, color=color, label=label, error_kw={"linewidth": 0.9})
        axes.set_yticks(range(len(shown)), [each.name for each in shown])
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set_xlabel("Spearman's coefficient within a question, mean over questions")
        tidy(axes)
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)


def draw_scatter(measured: Sequence[Measures], criteria: Sequence[Criterion], paths: Sequence[Path]) -> None:
    """Draws the influence of every decision over its rank by score, a panel a scorer; the line is the mean of tenths.

    Args:
        measured: a question each.
        criteria: of scorers, best first.
        paths: of the pictures.
    """
    shown = [each.name for each in criteria if each.influence.num]
    num_rows = max(1, math.ceil(len(shown) / _COLUMNS))
    with _figure((10, 0.6 + 2.3 * num_rows), paths) as figure:
        for number, name in enumerate(shown):
            axes = figure.add_subplot(num_rows, _COLUMNS, number + 1, sharey=figure.axes[0] if number else None)
            ranks, influence = _ranked(measured, name)
            axes.scatter(ranks, influence, s=4, alpha=0.25, color=_INFLUENCE, linewidths=0)
            means = [
                (float(ranks[part].mean()), float(influence[part].mean()))
                for part in ranks.argsort(stable=True).tensor_split(min(_BINS, len(ranks)))
            ]
            axes.plot([x for x, _ in means], [y for _, y in means], color=_TOTAL, linewidth=1.5)
            axes.set_xlim(0.0, 1.0)
            axes.set_title(name, fontsize="medium")
            tidy(axes)
        figure.supxlabel("rank by score among the decisions of the question, the best at 1", fontsize="medium")
        figure.supylabel("Var_a Q", fontsize="medium")


def draw_depth(measured: Sequence[Measures], paths: Sequence[Path]) -> None:
    """Draws both variances over the depth of the decision, in tenths.

    Args:
        measured: a question each.
        paths: of the pictures.
    """
    depth = torch.tensor([d.depth for each in measured for d in each.question.decisions], dtype=torch.float64)
    bins = (depth * _BINS).long().clamp(max=_BINS - 1)
    with _figure((7, 3.6), paths) as figure:
        axes = figure.add_subplot()
        for color, label, values in (
            (_INFLUENCE, "Var_a Q, what this token decides", torch.cat([each.whole.influence for each in measured])),
            (_TOTAL, "Var R, all that is open", torch.cat([each.whole.total for each in measured])),
        ):
            known = [number for number in range(_BINS) if (bins == number).any()]
            means = [float(values[bins == number].nanmean()) for number in known]
            axes.plot([(number + 0.5) / _BINS for number in known], means, color=color, label=label, marker="o")
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.set_xlabel("share of the trajectory's sampled tokens that come before")
        axes.set_ylabel("mean variance")
        tidy(axes)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)


def _ranked(measured: Sequence[Measures], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``[N]`` ranks in [0, 1] and influences of the decisions that have both."""
    scored = [each for each in measured if name in each.question.scores]
    ranks = [average_ranks(order(each.question.scores[name])) / len(each.whole.influence) for each in scored]
    influence = torch.cat([each.whole.influence for each in scored])
    return torch.cat(ranks)[~influence.isnan()], influence[~influence.isnan()]


@contextmanager
def _figure(size: tuple[float, float], paths: Sequence[Path]) -> Iterator[Figure]:
    """A picture that is saved when it is drawn."""
    # The picture is an extra that only reports need.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure
    save_figure(figure, paths)

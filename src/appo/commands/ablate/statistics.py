"""What the runs of an ablation say together: means, intervals, paired differences, tests and curves over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
"""Share of all ablations whose interval covers the true mean."""

FEWEST_SEEDS = 5
"""Below so many, an interval says more of its assumptions than of the seeds: they are shown, with no conclusion."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and how far it can be trusted.

    Attributes:
        mean: over seeds.
        low: end of the t interval; NaN with a single seed, which says nothing about the spread.
        high: likewise.
        p: of the hypothesis that the true mean is 0; NaN with a single seed.
        values: one for each seed.
    """

    mean: float
    low: float
    high: float
    p: float
    values: tuple[float, ...]

    @property
    def is_conclusive(self) -> bool:
        """Whether there are enough seeds to conclude from."""
        return len(self.values) >= FEWEST_SEEDS


@dataclass(frozen=True)
class Comparison:
    """One combination against the first.

    Attributes:
        combination: its name.
        value: of the metric.
        difference: to the first combination, paired by seed; none for the first itself, and where no seed is common.
        corrected_p: of the difference, for as many comparisons as are concluded from; NaN where there is no conclusion.
        area: under the curve; none if there is no curve.
        area_difference: as `difference`.
    """

    combination: str
    value: Estimate
    difference: Estimate | None = None
    corrected_p: float = float("nan")
    area: Estimate | None = None
    area_difference: Estimate | None = None


@dataclass(frozen=True, eq=False)
class Curve:
    """A metric over generated tokens, mean and interval over seeds.

    Attributes:
        tokens: ``[N]`` generated so far, ascending.
        mean: ``[N]``
        low: ``[N]``; NaN with a single seed.
        high: ``[N]``; likewise.
        runs: ``[S, N]``, that of each seed.
    """

    tokens: Array
    mean: Array
    low: Array
    high: Array
    runs: Array


def t_interval(values: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """The interval of a mean by Student's t.

    ``mean +- t * s / sqrt(S)``, with the standard deviation `s` of a sample and the quantile `t` of S - 1 degrees of
    freedom. It covers the true mean in `level` of all cases where the values are normal, however few they are.
    See "The Probable Error of a Mean" (https://doi.org/10.1093/biomet/6.1.1).

    Args:
        values: ``[S, ...]``, one for each seed.
        level: in (0, 1).

    Returns:
        Low and high end, ``[...]`` each; NaN if there is a single seed.
    """
    from scipy.stats import t

    if len(values) == 1:
        nothing = np.full_like(values[0], np.nan)
        return nothing, nothing
    half = t.ppf((1 + level) / 2, len(values) - 1) * _standard_error(values)
    mean = values.mean(axis=0)
    return mean - half, mean + half


def t_test(values: Array) -> float:
    """The probability of a mean as far from 0 as this one, or farther, if the true one is 0; two-sided, by Student's t.

    Of differences between two combinations, seed by seed, this is the paired t test.

    Args:
        values: ``[S]``, one for each seed.

    Returns:
        p; 1 if all values are 0, and NaN if there is a single one.
    """
    from scipy.stats import t

    if len(values) == 1:
        return float("nan")
    if not values.any():
        return 1.0
    error = _standard_error(values)
    return float(2 * t.sf(abs(values.mean()) / error, len(values) - 1)) if error else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """Corrects p-values for their number, after Holm.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than one before it. Below
    `alpha` then, with a probability of at most `alpha`, is any whose hypothesis is true.
    See "A Simple Sequentially Rejective Multiple Test Procedure" (https://www.jstor.org/stable/4615733).

    Args:
        p: in any order.

    Returns:
        The corrected values, in the same order.
    """
    corrected, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, interval and test of one value for each seed.

    Args:
        values: at least one.
    """
    array = np.asarray(values, dtype=np.float64)
    low, high = t_interval(array)
    return Estimate(float(array.mean()), float(low), float(high), t_test(array), tuple(array.tolist()))


def compare(values: Mapping[str, Mapping[int, float]], areas: Mapping[str, Mapping[int, float]]) -> list[Comparison]:
    """Every combination against the first.

    Args:
        values: metric by combination and seed; a combination without seeds is left out, unless it is the first, to
            which there is nothing to compare then.
        areas: under the curve, likewise.
    """
    comparisons = []
    for name, by_seed in values.items():
        if by_seed:
            value, difference = _against_first(values, name)
            area, area_difference = _against_first(areas, name)
            assert value is not None
            comparisons.append(Comparison(name, value, difference, area=area, area_difference=area_difference))
    concluded = [i for i, c in enumerate(comparisons) if c.difference is not None and c.difference.is_conclusive]
    p_values = [difference.p for i in concluded if (difference := comparisons[i].difference) is not None]
    for i, p in zip(concluded, holm(p_values), strict=True):
        comparisons[i] = replace(comparisons[i], corrected_p=p)
    return comparisons


def _against_first(values: Mapping[str, Mapping[int, float]], name: str) -> tuple[Estimate | None, Estimate | None]:
    """A combination's values, and their differences to the first combination's of the same seed."""
    first = values[next(iter(values))]
    own = values[name]
    common = [seed for seed in own if seed in first] if own is not first else []
    return (
        estimate(list(own.values())) if own else None,
        estimate([own[seed] - first[seed] for seed in common]) if common else None,
    )


def mean_curve(runs: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """The mean of several runs' curves over the tokens that all of them cover.

    A run's metric is known after each of its iterations; between two of them it is taken to lie on a line.

    Args:
        runs: ``(tokens, value)`` after every iteration, ascending; at least one run, and one point of each.

    Returns:
        The curve at every token count at which one of the runs has a point.
    """
    points = [np.asarray(run, dtype=np.float64) for run in runs]
    start, end = max(run[0, 0] for run in points), min(run[-1, 0] for run in points)
    tokens = np.unique(np.concatenate([run[:, 0] for run in points]))
    tokens = tokens[(tokens >= start) & (tokens <= end)]
    values = np.stack([np.interp(tokens, run[:, 0], run[:, 1]) for run in points])
    low, high = t_interval(values)
    return Curve(tokens, values.mean(axis=0), low, high, values)


def mean_heights(runs: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """The area under each curve over the tokens that all of them cover, divided by their number: its mean height.

    Args:
        runs: as of `mean_curve`.

    Returns:
        One for each run, in the unit of the metric; NaN if they have fewer than two token counts in common.
    """
    curve = mean_curve(runs)
    if len(curve.tokens) < 2:
        return [float("nan")] * len(runs)
    from scipy.integrate import trapezoid

    areas = trapezoid(curve.runs, curve.tokens, axis=1) / (curve.tokens[-1] - curve.tokens[0])
    return [float(area) for area in areas]


def _standard_error(values: Array) -> Array:
    """``[...]`` of the mean of ``[S, ...]`` values."""
    error: Array = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return error

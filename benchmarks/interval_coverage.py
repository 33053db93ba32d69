"""Simulates how often an ablation's intervals cover the truth, and how often it finds differences that are not there.

*Coverage.* An ablation is a paired difference for each of S seeds, drawn independently around a true mean that is
known. Of many ablations it counts those whose 95 % interval of the mean holds the true one: `t`, as `appo ablate`
computes it, and `bootstrap`, the percentile bootstrap of the mean. Three laws of the differences:

- `normal`, for which the t interval is made;
- `skewed`: exponential, with a skewness of 2;
- `collapse`: normal, but that one training in ten ends five standard deviations lower.

*False findings.* An ablation without any difference: the first combination and three others, whose values are normal
and independent. Counted are ablations in which at least one of the three paired t tests falls below 0.05, with p as it
is and corrected after Holm.

Every figure has the standard error of a share of so many ablations.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy

from appo.commands.ablate.statistics import LEVEL, Array, holm, t_interval, t_test

NUM_RESAMPLES = 2_000
NUM_COMPARED = 3
COLLAPSE_SHARE, COLLAPSE_DEPTH = 0.1, 5.0

Draw = Callable[[np.random.Generator, tuple[int, int]], Array]
Interval = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Law:
    """How paired differences are spread.

    Attributes:
        mean: the true one.
        draw: differences of a shape.
    """

    mean: float
    draw: Draw


@dataclass(frozen=True)
class Coverage:
    """The share of ablations whose interval holds the true mean."""

    law: str
    num_seeds: int
    interval: str
    share: float
    standard_error: float


@dataclass(frozen=True)
class FalseFindings:
    """The share of ablations without a difference that find one."""

    num_seeds: int
    plain: float
    corrected: float
    standard_error: float


def collapsing(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Draws normal differences, a tenth of which lie far below."""
    values: Array = rng.normal(size=shape) - COLLAPSE_DEPTH * (rng.random(shape) < COLLAPSE_SHARE)
    return values


LAWS: Mapping[str, Law] = {
    "normal": Law(0.0, lambda rng, shape: rng.normal(size=shape)),
    "skewed": Law(1.0, lambda rng, shape: rng.exponential(size=shape)),
    "collapse": Law(-COLLAPSE_SHARE * COLLAPSE_DEPTH, collapsing),
}


def bootstrap_interval(values: Array) -> tuple[Array, Array]:
    """The percentile bootstrap interval of a mean; ``[S, N]`` values of N ablations, which share their draws.

    See "An Introduction to the Bootstrap" (https://doi.org/10.1201/9780429246593), chapter 13.
    """
    num_seeds = len(values)
    rows = np.random.default_rng(0).integers(num_seeds, size=(NUM_RESAMPLES, num_seeds))
    counts = (rows[:, :, None] == np.arange(num_seeds)).sum(axis=1)
    parts = [np.quantile(counts / num_seeds @ part, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
             for part in np.array_split(values, max(1, values.shape[1] // 1000), axis=1)]  # fmt: skip
    low, high = np.concatenate(parts, axis=1)
    return low, high


INTERVALS: Mapping[str, Interval] = {"t": t_interval, "bootstrap": bootstrap_interval}


def coverage(law: str, num_seeds: int, interval: str, num_ablations: int) -> Coverage:
    """Simulates ablations of one kind.

    Args:
        law: key of `LAWS`.
        num_seeds: of every ablation.
        interval: key of `INTERVALS`.
        num_ablations: simulated.
    """
    values = LAWS[law].draw(np.random.default_rng(num_seeds), (num_seeds, num_ablations))
    low, high = INTERVALS[interval](values)
    share = float(((low <= LAWS[law].mean) & (LAWS[law].mean <= high)).mean())
    return Coverage(law, num_seeds, interval, share, standard_error(share, num_ablations))


def false_findings(num_seeds: int, num_ablations: int) -> FalseFindings:
    """Simulates ablations that have nothing to find.

    Args:
        num_seeds: of every combination.
        num_ablations: simulated.
    """
    values = np.random.default_rng(num_seeds).normal(size=(num_ablations, 1 + NUM_COMPARED, num_seeds))
    p = [[t_test(difference) for difference in ablation[1:] - ablation[0]] for ablation in values]
    plain = float(np.mean([min(row) < 1 - LEVEL for row in p]))
    corrected = float(np.mean([min(holm(row)) < 1 - LEVEL for row in p]))
    return FalseFindings(num_seeds, plain, corrected, standard_error(plain, num_ablations))


def standard_error(share: float, number: int) -> float:
    """Of a share of independent ablations."""
    return float(np.sqrt(share * (1 - share) / number))


def main() -> None:
    """Prints the tables and writes them as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.interval_coverage", description="Intervals of ablations.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of interval_coverage.json")
    parser.add_argument("--seeds", type=int, nargs="*", default=[3, 5, 8], help="seeds of an ablation")
    parser.add_argument("--ablations", type=int, default=40_000, help="simulated for each coverage")
    parser.add_argument("--tests", type=int, default=10_000, help="simulated for each share of false findings")
    options = parser.parse_args()
    covered = [
        coverage(law, num_seeds, interval, options.ablations)
        for law in LAWS
        for interval in INTERVALS
        for num_seeds in options.seeds
    ]
    found = [false_findings(num_seeds, options.tests) for num_seeds in options.seeds]
    print(f"{'coverage, %':22}", *(f"{f'{number} seeds':>9}" for number in options.seeds))
    for start in range(0, len(covered), len(options.seeds)):
        row = covered[start : start + len(options.seeds)]
        print(f"{f'{row[0].law}, {row[0].interval}':22}", *(f"{100 * each.share:9.1f}" for each in row))
    print(f"{'false findings, %':22}", *(f"{f'{each.num_seeds} seeds':>9}" for each in found))
    print(f"{'p':22}", *(f"{100 * each.plain:9.1f}" for each in found))
    print(f"{'p, corrected':22}", *(f"{100 * each.corrected:9.1f}" for each in found))
    largest = max(each.standard_error for each in (*covered, *found))
    print(f"standard errors up to {100 * largest:.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "level": LEVEL,
        "ablations": options.ablations,
        "tests": options.tests,
        "compared": NUM_COMPARED,
        "resamples": NUM_RESAMPLES,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "coverage": [asdict(each) for each in covered],
        "false_findings": [asdict(each) for each in found],
    }
    (options.out / "interval_coverage.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

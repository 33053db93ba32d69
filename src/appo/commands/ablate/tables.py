"""The runs of an ablation as CSV for machines, and their comparison as Markdown for people."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from appo.commands.ablate.execution import Failure, Result
from appo.commands.ablate.spec import AblationSpec, value_text
from appo.commands.ablate.statistics import LEVEL, Comparison, Estimate

NOTHING = "—"
"""Stands where there is nothing to say."""


def write_runs(path: Path, results: Sequence[Result], spec: AblationSpec) -> None:
    """Writes one row for each finished run: combination, its values, seed, tokens, and every metric.

    Args:
        path: of the CSV file.
        results: in the order of the rows.
        spec: of the ablation.
    """
    values = {combination.name: combination.values for combination in spec.combinations}
    names = sorted({name for result in results for name in result.metrics} - {spec.metric})
    columns = ["combination", *spec.vary, "seed", "tokens", "iterations", spec.metric, *names]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for result in results:
            run = result.run
            writer.writerow(
                {
                    "combination": run.combination,
                    **{key: value_text(value) for key, value in values[run.combination].items()},
                    "seed": run.seed,
                    "tokens": result.tokens,
                    "iterations": len(result.history),
                    **result.metrics,
                }
            )


def comparison_page(comparisons: Sequence[Comparison], failures: Sequence[Failure], spec: AblationSpec) -> str:
    """The table, the figure and what failed, as Markdown.

    Args:
        comparisons: in the order of the rows.
        failures: runs that the table is without.
        spec: of the ablation.
    """
    first = spec.combinations[0].name
    seeds = ", ".join(str(seed) for seed in spec.seeds)
    lines = [
        "# Ablation",
        "",
        f"`{spec.metric}` after {spec.tokens:,} generated tokens, mean over seeds ({seeds}) with the {LEVEL:.0%} "
        f"bootstrap interval of the mean. The difference is to `{first}`, paired by seed.",
        "",
        f"| combination | seeds | {spec.metric} | difference | generated tokens |",
        "|---|---:|---:|---:|---:|",
        *(_row(comparison) for comparison in comparisons),
        "",
        "![learning curves](curves.png)",
        "",
    ]
    if failures:
        lines += ["## Failed runs", "", "The table is without them.", ""]
        lines += [f"- {failure.run}: {failure.reason}; see `{failure.run.folder / 'log.txt'}`" for failure in failures]
        lines.append("")
    return "\n".join(lines)


def _row(comparison: Comparison) -> str:
    difference = comparison.difference
    cells = (
        comparison.combination,
        str(comparison.value.num_seeds),
        _text(comparison.value, ".3f"),
        NOTHING if difference is None else _text(difference, "+.3f"),
        f"{comparison.tokens:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _text(estimate: Estimate, form: str) -> str:
    interval = NOTHING if math.isnan(estimate.low) else f"{estimate.low:{form}}, {estimate.high:{form}}"
    return f"{estimate.mean:{form}} [{interval}]"


def metric_by_run(results: Sequence[Result], spec: AblationSpec) -> Mapping[str, dict[int, float]]:
    """The metric of every finished run, by combination and seed."""
    values: dict[str, dict[int, float]] = {combination.name: {} for combination in spec.combinations}
    for result in results:
        values[result.run.combination][result.run.seed] = result.metrics[spec.metric]
    return values

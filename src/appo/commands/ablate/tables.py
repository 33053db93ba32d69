"""The runs of an ablation as CSV for machines, and their comparison as Markdown for people."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from appo.commands.ablate.costs import Costs
from appo.commands.ablate.execution import Failure, Result
from appo.commands.ablate.spec import AblationSpec, value_text
from appo.commands.ablate.statistics import FEWEST_SEEDS, LEVEL, Comparison, Estimate, estimate
from appo.commands.ablate.summary import Summary
from appo.commands.markdown import markdown_table

NOTHING = "—"
"""Stands where there is nothing to say."""

_COSTS: Mapping[str, Callable[[Costs], float]] = {
    "tokens": lambda costs: costs.tokens,
    "steps": lambda costs: costs.steps,
    "tokens_per_step": lambda costs: costs.tokens_per_step,
    "trained_tokens": lambda costs: costs.trained_tokens,
    "training_s": lambda costs: costs.training_s,
    "tool_calls": lambda costs: costs.tool_calls,
}


def write_runs(path: Path, results: Sequence[Result], spec: AblationSpec) -> None:
    """Writes one row for each finished run: combination, its values, seed, what it took, and every metric.

    Args:
        path: of the CSV file.
        results: in the order of the rows.
        spec: of the ablation.
    """
    values = {combination.name: combination.values for combination in spec.combinations}
    names = sorted({name for result in results for name in result.metrics} - {spec.metric})
    columns = ["combination", *spec.vary, "seed", *_COSTS, "iterations", spec.metric, *names]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for result in results:
            run = result.run
            costs = {name: f"{of(result.costs):.10g}" for name, of in _COSTS.items()} if result.history else {}
            writer.writerow(
                {
                    "combination": run.combination,
                    **{key: value_text(value) for key, value in values.get(run.combination, {}).items()},
                    "seed": run.seed,
                    **costs,
                    "iterations": len(result.history),
                    **result.metrics,
                }
            )


def ablation_page(summary: Summary, spec: AblationSpec) -> str:
    """The tables, the figure, what to mind and what failed, as Markdown.

    Args:
        summary: what to tell.
        spec: of the ablation.
    """
    lines = [
        "# Ablation",
        "",
        f"`{spec.metric}` after {spec.tokens:,} generated tokens, and the mean height of the curve of "
        f"`{summary.curve}` (the area under it), over seeds: the mean with its {LEVEL:.0%} t interval; of fewer than "
        f"{FEWEST_SEEDS} seeds their values, and no verdict. Differences are to `{spec.combinations[0].name}`, paired "
        "by seed; p is that of the paired t test, corrected for the number of comparisons after Holm.",
        "",
        *_comparison_table(summary, spec),
        "",
        "What a run took, mean over seeds:",
        "",
        *_cost_table(summary.trained, spec),
        "",
        "Trained tokens are of the sequences that went through the policy forth and back, prompts and tool output "
        "included; the time is that of the iterations without evaluation.",
        "",
        "![learning curves](curves.png)",
        "",
        *_section("To mind", summary.cautions.values()),
        *_section("Failed runs, which the tables are without", map(_failure_text, summary.failures)),
    ]
    return "\n".join(lines)


def _comparison_table(summary: Summary, spec: AblationSpec) -> list[str]:
    before: dict[str, list[float]] = {}
    for result in summary.before:
        before.setdefault(result.run.combination, []).append(result.metrics[spec.metric])
    start = [Comparison(name, estimate(values)) for name, values in before.items()]
    tested = "difference", "p", "p, corrected", "verdict"
    return markdown_table(
        ["combination", "seeds", spec.metric, *tested, "area", "difference of areas"],
        [_comparison_row(comparison) for comparison in (*start, *summary.comparisons)],
    )


def _comparison_row(comparison: Comparison) -> list[str]:
    difference = comparison.difference
    return [
        comparison.combination,
        str(len(comparison.value.values)),
        _estimate_text(comparison.value, ".3f"),
        _estimate_text(difference, "+.3f"),
        NOTHING if difference is None or not difference.is_conclusive else _p_text(difference.p),
        NOTHING if difference is None or not difference.is_conclusive else _p_text(comparison.corrected_p),
        _verdict(comparison),
        _estimate_text(comparison.area, ".3f"),
        _estimate_text(comparison.area_difference, "+.3f"),
    ]


def _estimate_text(estimate: Estimate | None, form: str) -> str:
    """The mean with its interval, or with the values where they are too few for one."""
    if estimate is None:
        return NOTHING
    if estimate.is_conclusive:
        return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
    return f"{estimate.mean:{form}} ({', '.join(f'{value:{form}}' for value in estimate.values)})"


def _p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _verdict(comparison: Comparison) -> str:
    """Which of two combinations has more of the metric; which of them is better, the metric knows."""
    difference = comparison.difference
    if difference is None:
        return NOTHING
    if not difference.is_conclusive:
        return "no verdict"
    if comparison.corrected_p >= 1 - LEVEL:
        return "not told apart"
    return "higher" if difference.mean > 0 else "lower"


def _cost_table(trained: Sequence[Result], spec: AblationSpec) -> list[str]:
    rows = []
    for combination in spec.combinations:
        found = [result for result in trained if result.run.combination == combination.name]
        if found:
            mean = {name: fmean(of(result.costs) for result in found) for name, of in _COSTS.items()}
            prompts = sorted({result.run.prompts[1] for result in found})
            rows.append(
                [
                    combination.name,
                    ", ".join(map(str, prompts)),
                    f"{mean['tokens']:,.0f}",
                    f"{mean['steps']:,.1f}",
                    f"{mean['tokens_per_step']:,.0f}",
                    f"{mean['trained_tokens']:,.0f}",
                    f"{mean['training_s']:,.0f} s",
                    f"{mean['tool_calls']:,.0f}",
                ]
            )
    columns = "generated tokens", "optimizer steps", "tokens a step", "trained tokens", "time", "tool calls"
    return markdown_table(["combination", "prompts a step", *columns], rows)


def _section(title: str, items: Iterable[str]) -> list[str]:
    found = [f"- {item}" for item in items]
    return [f"## {title}", "", *found, ""] if found else []


def _failure_text(failure: Failure) -> str:
    return f"{failure.run}: {failure.reason}; see `{failure.run.folder / 'log.txt'}`"

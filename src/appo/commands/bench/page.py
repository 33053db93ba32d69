"""The results of a suite for people and for machines, beside what the paper reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from appo.commands.bench.answers import Answered
from appo.commands.bench.callback import Benchmark
from appo.commands.bench.suites import REPORTED, SUITES, TITLES
from appo.commands.markdown import markdown_table
from appo.monitoring.evaluation_metrics import RIGHT, EvaluationMetrics, Moments, pass_at_k

_KS = (1, 3, 5)
"""Numbers of samples that the tables tell of."""

_NOTHING = "—"

_NAMES = {"reasoning": "Reasoning", "search": "Deep search"}


@dataclass(frozen=True)
class Result:
    """What came of a benchmark.

    Attributes:
        num_questions: that were asked.
        num_samples: of each.
        passed: pass@k by k, where there are so many samples, in [0, 1].
        interval: of pass@1, 95 %.
        calls: of tools, a question's sample.
        tokens: sampled, a question's sample.
        metrics: all others, as ``appo test`` names them.
    """

    num_questions: int
    num_samples: int
    passed: Mapping[int, float]
    interval: tuple[float, float]
    calls: float
    tokens: float
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, answered: Sequence[Answered]) -> Result:
        """Of all questions of a benchmark, of which there is one at least."""
        metrics, by_question = EvaluationMetrics(), Moments()
        for question in answered:
            metrics.merge(question.metrics)
        passed: dict[int, list[float]] = {}
        for question in answered:
            number = len(question.accuracies)
            num_right = sum(accuracy >= RIGHT for accuracy in question.accuracies)
            for k in _KS:
                if k <= number:
                    passed.setdefault(k, []).append(pass_at_k(num_right, number, k))
        for value in passed.get(1, ()):
            by_question.add(value)
        return cls(
            len(answered),
            max(len(question.num_tokens) for question in answered),
            {k: fmean(values) for k, values in passed.items()},
            by_question.interval if by_question.count else (0.0, 1.0),
            fmean(calls for question in answered for calls in question.num_calls),
            fmean(tokens for question in answered for tokens in question.num_tokens),
            metrics.compute_own(),
        )

    @property
    def accuracy(self) -> float:
        """Share of samples that are right, in [0, 1]; what the paper's tables have."""
        return self.metrics["accuracy"]


def write_results(out: Path, policy: str, benchmarks: Sequence[Benchmark]) -> Path:
    """Writes ``bench.json`` and ``bench.md`` of what folders have.

    Args:
        out: folder of both.
        policy: that was asked.
        benchmarks: whose questions are answered.

    Returns:
        The path of the page.
    """
    results = {benchmark.name: Result.of(benchmark.folder.read()) for benchmark in benchmarks}
    lines = [f"# Benchmarks of `{policy}`", ""]
    for suite in REPORTED:
        if any(name in results for name in SUITES[suite]):
            lines += [f"## {_NAMES[suite]}", "", *_paper_table(suite, results), ""]
    lines += ["## By benchmark", "", *_detail_table(results), "", *_notes(benchmarks), ""]
    path = out / "bench.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    content: dict[str, Any] = {
        "policy": policy,
        "averages": {suite: average(suite, results) for suite in REPORTED},
        "benchmarks": {name: dict(result.metrics) for name, result in results.items()},
    }
    (out / "bench.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def average(suite: str, results: Mapping[str, Result]) -> float | None:
    """Mean accuracy over the benchmarks of a suite, in [0, 1], each counting the same; None if one is missing."""
    names = SUITES[suite]
    return fmean(results[name].accuracy for name in names) if all(name in results for name in names) else None


def _paper_table(suite: str, results: Mapping[str, Result]) -> list[str]:
    """The paper's layout: a row a policy, a column a benchmark, accuracy in percent."""
    names = SUITES[suite]
    mean = average(suite, results)
    own = [_percent(results[name].accuracy) if name in results else _NOTHING for name in names]
    rows = [["this policy", "", *own, _percent(mean)]]
    for row in REPORTED[suite]:
        values = [f"{row.values[name]:.1f}" if name in row.values else _NOTHING for name in names]
        rows.append(
            [row.model, f"{row.method}, reported", *values, _NOTHING if row.average is None else f"{row.average:.1f}"]
        )
    return markdown_table(["model", "method", *(TITLES[name] for name in names), "average"], rows)


def _detail_table(results: Mapping[str, Result]) -> list[str]:
    columns = ["benchmark", "questions", "samples", "pass@1", "95 % interval", *(f"pass@{k}" for k in _KS[1:])]
    return markdown_table([*columns, "tool calls", "tokens"], [_row(name, each) for name, each in results.items()])


def _row(name: str, result: Result) -> list[str]:
    low, high = result.interval
    return [
        TITLES.get(name, name),
        f"{result.num_questions:,}",
        str(result.num_samples),
        _percent(result.passed.get(1)),
        f"{100.0 * low:.1f} to {100.0 * high:.1f}" if 1 in result.passed else _NOTHING,
        *(_percent(result.passed.get(k)) for k in _KS[1:]),
        f"{result.calls:.2f}",
        f"{result.tokens:,.0f}",
    ]


def _notes(benchmarks: Sequence[Benchmark]) -> list[str]:
    graders: dict[str, list[str]] = {}
    for each in benchmarks:
        graders.setdefault(type(each.reward.reward).__name__, []).append(TITLES.get(each.name, each.name))
    return [
        "Accuracy and pass@k are in percent, pass@k without bias from all samples of a question; calls of tools and",
        "sampled tokens are means over samples. The paper (arXiv 2606.12384) reports single runs, graded by a judge of",
        "its own.",
        "",
        *(f"- `{reward}` graded {', '.join(names)}." for reward, names in graders.items()),
    ]


def _percent(share: float | None) -> str:
    return _one_digit(None if share is None else 100.0 * share)


def _one_digit(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1f}"

"""What an ablation says while it runs: of every run that ends, and in the files that tell of all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from appo.commands.ablate.cautions import Cautions
from appo.commands.ablate.execution import Failure, Result
from appo.commands.ablate.figure import draw_curves
from appo.commands.ablate.runs import Run
from appo.commands.ablate.spec import AblationSpec
from appo.commands.ablate.summary import Summary
from appo.commands.ablate.tables import ablation_page, write_runs

log = logging.getLogger(__name__)


class Report:
    """Keeps the files of an ablation up to date.

    Args:
        spec: of the ablation.
        runs: all that are to end.
        cautions: that are known before.
        failures: that came before these runs.
    """

    def __init__(
        self, spec: AblationSpec, runs: Sequence[Run], cautions: Cautions, failures: Sequence[Failure]
    ) -> None:
        self.spec = spec
        self.order = {str(run): number for number, run in enumerate(runs)}
        self.num_runs = len(runs)
        self.failures: list[Failure] = []
        """That are known so far."""
        self._cautions = cautions
        self._said: set[str] = set()
        self._ended: list[Result | Failure] = []
        for failure in failures:
            self.failures.append(failure)
            say_failure(failure)
        self._write()

    def take(self, outcome: Result | Failure) -> None:
        """Takes in how a run has ended."""
        metric = self.spec.metric
        if isinstance(outcome, Result) and metric not in outcome.metrics:
            outcome = _without_metric(outcome, metric)
        self._ended.append(outcome)
        self._ended.sort(key=lambda outcome: self.order[str(outcome.run)])
        count = f"{len(self._ended)} of {self.num_runs}"
        if isinstance(outcome, Result):
            tokens = f" after {outcome.costs.tokens:.0f} tokens" if outcome.history else ""
            log.info("%s: %s: %s = %.3f%s", count, outcome.run, metric, outcome.metrics[metric], tokens)
        else:
            self.failures.append(outcome)
            say_failure(outcome, f"{count}: ")
        self._write()

    def _write(self) -> None:
        ended = [*self._ended, *(failure for failure in self.failures if failure not in self._ended)]
        summary = Summary.of(ended, self._cautions, self.spec)
        for subject in summary.cautions.keys() - self._said:
            log.warning(summary.cautions[subject])
        self._said |= summary.cautions.keys()
        out = self.spec.out
        write_runs(out / "runs.csv", [*summary.before, *summary.trained], self.spec)
        (out / "ablation.md").write_text(ablation_page(summary, self.spec), encoding="utf-8")
        if summary.trained:
            draw_curves(summary.trained, summary.curve, self.spec, (out / "curves.png", out / "curves.svg"))


def say_failure(failure: Failure, count: str = "") -> None:
    """Logs why a run has failed, with the end of its own log."""
    log.error("%s%s has FAILED: %s", count, failure.run, failure.reason)
    if failure.last_lines:
        lines = "".join(f"\n    {line}" for line in failure.last_lines)
        log.error("%s ends with%s", failure.run.folder / "log.txt", lines)


def _without_metric(result: Result, metric: str) -> Failure:
    kind = metric.partition("/")[0]
    known = sorted(name for name in result.metrics if name.startswith(f"{kind}/"))
    return Failure(result.run, f"metric must be one that it has, got {metric!r}; there are: {', '.join(known)}")

"""The command ``appo ablate`` from its arguments to its tables."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from appo.commands.ablate.execution import Failure, Result, perform
from appo.commands.ablate.figure import draw_curves
from appo.commands.ablate.options import read_spec
from appo.commands.ablate.processes import Children, alone_in, interrupted_by_termination
from appo.commands.ablate.runs import Resolve, Run, check_folder, resolve_runs
from appo.commands.ablate.spec import AblationSpec
from appo.commands.ablate.statistics import compare
from appo.commands.ablate.tables import comparison_page, metric_by_run, write_runs
from appo.commands.errors import in_one_line
from appo.core.extras import require_extra

log = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit status if the user has stopped it."""


def ablate(args: Sequence[str], resolve: Resolve) -> int:
    """Runs an ablation.

    Args:
        args: of the command.
        resolve: what `appo fit` would make of a command line.

    Returns:
        The exit status: 0 if all runs have come to their end, 1 if one has failed, 130 if it was interrupted.

    Raises:
        SystemExit: with status 2 if nothing was run, after a line that says why.
    """
    with ExitStack() as held:
        with in_one_line():
            spec = read_spec(args)
            require_extra("matplotlib", "the figure", "report")
            runs = resolve_runs(spec, resolve)
            lock = held.enter_context(alone_in(spec.out))
            for run in runs:
                check_folder(run)
        return _run_all(spec, runs, lock)


def _run_all(spec: AblationSpec, runs: Sequence[Run], lock: int) -> int:
    """Performs all runs; the tables are up to date whenever one has ended."""
    order = {str(run): number for number, run in enumerate(runs)}
    ended: list[Result | Failure] = []

    def take(outcome: Result | Failure) -> None:
        if isinstance(outcome, Result) and spec.metric not in outcome.metrics:
            outcome = _without_metric(outcome, spec)
        ended.append(outcome)
        ended.sort(key=lambda outcome: order[str(outcome.run)])
        _say(outcome, len(ended), len(runs), spec)
        _write(ended, spec)

    # Runs side by side share the cores; one alone may have them all.
    num_threads = max(1, (os.cpu_count() or 1) // spec.jobs) if spec.jobs > 1 else None
    try:
        with interrupted_by_termination():
            perform(runs, spec.jobs, Children(num_threads, keep_open=(lock,)), take)
    except KeyboardInterrupt:
        log.info("stopped; the same command goes on from here")
        return INTERRUPTED
    failed = [outcome for outcome in ended if isinstance(outcome, Failure)]
    if failed:
        sys.stderr.write(
            f"error: {len(failed)} of {len(runs)} runs have failed: {'; '.join(str(f.run) for f in failed)}\n"
        )
    sys.stdout.write(f"{spec.out / 'ablation.md'}\n")
    return 1 if failed else 0


def _without_metric(result: Result, spec: AblationSpec) -> Failure:
    kind = spec.metric.partition("/")[0]
    known = sorted(name for name in result.metrics if name.startswith(f"{kind}/"))
    return Failure(result.run, f"metric must be one that it has, got {spec.metric!r}; there are: {', '.join(known)}")


def _say(outcome: Result | Failure, number: int, of: int, spec: AblationSpec) -> None:
    if isinstance(outcome, Result):
        value = outcome.metrics[spec.metric]
        log.info("%d of %d: %s: %s = %.3f after %d tokens", number, of, outcome.run, spec.metric, value, outcome.tokens)
        return
    log.error("%d of %d: %s has FAILED: %s", number, of, outcome.run, outcome.reason)
    if outcome.last_lines:
        lines = "".join(f"\n    {line}" for line in outcome.last_lines)
        log.error("%s ends with%s", outcome.run.folder / "log.txt", lines)


def _write(ended: Sequence[Result | Failure], spec: AblationSpec) -> None:
    results = [outcome for outcome in ended if isinstance(outcome, Result)]
    failures = [outcome for outcome in ended if isinstance(outcome, Failure)]
    write_runs(spec.out / "runs.csv", results, spec)
    tokens = {c.name: {r.run.seed: float(r.tokens) for r in results if r.run.combination == c.name}
              for c in spec.combinations}  # fmt: skip
    page = comparison_page(compare(metric_by_run(results, spec), tokens), failures, spec)
    (spec.out / "ablation.md").write_text(page, encoding="utf-8")
    if results:
        draw_curves(results, spec, (spec.out / "curves.png", spec.out / "curves.svg"))

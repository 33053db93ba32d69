"""The command ``appo ablate`` from its arguments to its tables."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from appo.commands.ablate.cautions import cautions_of_runs
from appo.commands.ablate.execution import Failure, Result, perform
from appo.commands.ablate.folders import check_folder
from appo.commands.ablate.matching import matched_combinations
from appo.commands.ablate.options import read_spec
from appo.commands.ablate.processes import Children, Stopped, alone_in, interruptible
from appo.commands.ablate.report import Report
from appo.commands.ablate.runs import Resolve, Run, resolve_runs, runs_before_training
from appo.commands.ablate.spec import AblationSpec
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
        SystemExit: with status 2, after a line that says why, if nothing was run or prompts cannot be matched.
    """
    with ExitStack() as held:
        with in_one_line():
            spec = read_spec(args)
            require_extra("matplotlib", "the figure", "report")
            require_extra("scipy", "the interval of a mean", "report")
            runs = resolve_runs(spec, spec.combinations, resolve)
            lock = held.enter_context(alone_in(spec.out))
            for run in (*runs_before_training(spec, runs), *runs):
                check_folder(run)
        # Runs side by side share the cores; one alone may have them all.
        num_threads = max(1, (os.cpu_count() or 1) // spec.jobs) if spec.jobs > 1 else None
        children = Children(num_threads, keep_open=(lock,))
        try:
            with interruptible(children):
                return perform_all(spec, runs, resolve, children)
        except (KeyboardInterrupt, Stopped):
            log.info("stopped; the same command goes on from here")
            return INTERRUPTED


def perform_all(spec: AblationSpec, runs: Sequence[Run], resolve: Resolve, children: Children) -> int:
    """Matches the prompts of combinations and performs all runs; the tables are up to date whenever one has ended.

    Args:
        spec: of the ablation.
        runs: its trainings, as they are configured.
        resolve: what `appo fit` would make of a command line.
        children: starts processes.

    Returns:
        The exit status: 0 if all runs have come to their end, 1 if one has failed.

    Raises:
        SystemExit: with status 2, after a line that says why, if prompts cannot be matched.
    """
    before = runs_before_training(spec, runs)
    failures: list[Failure] = []
    cautions = cautions_of_runs(runs)
    if spec.match != "none" and len(spec.combinations) > 1:
        runs, failures = _matched(spec, runs, resolve, children)
    report = Report(spec, [*before, *runs], cautions, failures)
    perform([*before, *runs], spec.jobs, children, report.take)
    if report.failures:
        names = "; ".join(str(failure.run) for failure in report.failures)
        number = len(before) + len(runs) + len(failures)
        sys.stderr.write(f"error: {len(report.failures)} of {number} runs have failed: {names}\n")
    sys.stdout.write(f"{spec.out / 'ablation.md'}\n")
    return 1 if report.failures else 0


def _matched(
    spec: AblationSpec, runs: Sequence[Run], resolve: Resolve, children: Children
) -> tuple[list[Run], list[Failure]]:
    """Trains the first seed of every combination, and sets prompts by what its steps have sampled.

    Returns:
        The trainings of the combinations whose first one has not failed, and the failures.
    """
    pilots = [replace(run, test_args=(), test_specification=None) for run in runs if run.seed == spec.seeds[0]]
    results: dict[str, Result] = {}
    failures: list[Failure] = []

    def take(outcome: Result | Failure) -> None:
        if isinstance(outcome, Result):
            results[outcome.run.combination] = outcome
        else:
            failures.append(outcome)

    log.info("the runs of seed %d measure the tokens of a step", spec.seeds[0])
    perform(pilots, spec.jobs, children, take)
    if spec.combinations[0].name not in results:
        return [], failures
    with in_one_line():
        matched = resolve_runs(spec, matched_combinations(spec.combinations, results), resolve)
        for run in matched:
            check_folder(run)
    return matched, failures

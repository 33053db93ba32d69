"""Trains and tests the runs of an ablation, from wherever an earlier call has left them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from appo.commands.ablate.costs import TOKENS, Costs
from appo.commands.ablate.folders import read_specification, write_specification
from appo.commands.ablate.processes import Children
from appo.commands.ablate.runs import Run
from appo.monitoring.history import read_evaluation, read_history

log = logging.getLogger(__name__)

FINISHED = "finished.json"
"""File of a run's folder that says that the training has ended at its budget."""

_NUM_LOG_LINES = 20


@dataclass(frozen=True)
class Result:
    """What a run has left.

    Attributes:
        run: that left it.
        history: metrics of every iteration; none if nothing was trained.
        metrics: of the test, and the last ones of the log.
    """

    run: Run
    history: Sequence[dict[str, float]]
    metrics: dict[str, float]

    @property
    def costs(self) -> Costs:
        """What the training took."""
        return Costs.of(self.history)


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end.

    Attributes:
        run: that failed.
        reason: in words.
        last_lines: of its log.
    """

    run: Run
    reason: str
    last_lines: tuple[str, ...] = ()


class RunFailed(Exception):  # noqa: N818  # a result that is reported, not an error of this program
    """A command of a run has failed, or has not done what it should."""


def perform(runs: Sequence[Run], jobs: int, children: Children, when_ended: Callable[[Result | Failure], None]) -> None:
    """Brings every run to its end, `jobs` at a time. Whatever ends this early stops what is running.

    Args:
        runs: to perform.
        jobs: runs side by side.
        children: starts their processes.
        when_ended: is told what came of each, in the order in which they end.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_perform_one, run, children) for run in runs]
        try:
            for future in as_completed(futures):
                when_ended(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise


def _perform_one(run: Run, children: Children) -> Result | Failure:
    run.folder.mkdir(parents=True, exist_ok=True)
    log_file = run.folder / "log.txt"
    start = log_file.stat().st_size if log_file.exists() else 0
    try:
        if run.fit_args:
            _train(run, children)
        else:
            write_specification(run.folder, run.specification)
        if run.test_specification is not None:
            _test(run, children)
    except RunFailed as failure:
        return Failure(run, str(failure), _last_lines(log_file, start))
    history = read_history(run.folder) if run.fit_args else []
    metrics = {name: value for row in history for name, value in row.items() if "/" in name}
    if run.test_specification is not None:
        metrics |= read_evaluation(run.test_folder)
    return Result(run, history, metrics)


def _train(run: Run, children: Children) -> None:
    """Trains until the budget is spent: anew, or from the last checkpoint of a run that was interrupted."""
    if (run.folder / FINISHED).exists():
        log.info("%s: is trained", run)
        return
    args = ["fit", *run.fit_args]
    if any(run.folder.rglob("last*.ckpt")):
        log.info("%s: trains on from its last checkpoint", run)
        args.append("--ckpt_path=last")
    else:
        log.info("%s: trains", run)
        _empty(run.folder)
    write_specification(run.folder, run.specification)
    _command(args, run.folder, children)
    try:
        history = read_history(run.folder)
    except FileNotFoundError as error:
        raise RunFailed(f"the training ended without an iteration: {error}") from error
    tokens = int(history[-1].get(TOKENS, 0))
    if tokens < run.tokens:
        raise RunFailed(f"the training ended after {tokens} of {run.tokens} tokens: something else has stopped it")
    (run.folder / FINISHED).write_text(json.dumps({"tokens": tokens, "iterations": len(history)}) + "\n")


def _test(run: Run, children: Children) -> None:
    """Tests the trained policy, unless that was done under the same options."""
    assert run.test_specification is not None
    if read_specification(run.test_folder) == run.test_specification:
        return
    log.info("%s: is tested", run)
    shutil.rmtree(run.test_folder, ignore_errors=True)
    _command(["test", *run.test_args], run.folder, children)
    write_specification(run.test_folder, run.test_specification)


def _command(args: Sequence[str], folder: Path, children: Children) -> None:
    status = children.run(args, folder / "log.txt")
    if status:
        raise RunFailed(f"appo {args[0]} ended with status {status}")


def _empty(folder: Path) -> None:
    """Removes what a run has left that cannot be gone on with, but for its log."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "log.txt":
            path.unlink()


def _last_lines(log_file: Path, start: int) -> tuple[str, ...]:
    """The end of what was added to a log from byte `start` on."""
    if not log_file.exists():
        return ()
    with log_file.open("rb") as file:
        file.seek(start)
        return tuple(file.read().decode(errors="replace").splitlines()[-_NUM_LOG_LINES:])

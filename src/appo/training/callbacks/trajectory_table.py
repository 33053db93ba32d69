"""Some trajectories of an iteration, for the log and for loggers that have tables."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

import lightning as L
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from appo.core.trajectory import RewardResult, Trajectory

log = logging.getLogger(__name__)

COLUMNS = ("question", "reward", "from", "tool calls", "tokens", "ended by", "response")
"""Of the table; `from` is the token at which a branch leaves its parent."""

_SHOWN = 600
"""Characters of a response in the log; tables have all of it."""

_NAME = "trajectories"

Rewarded = tuple[Trajectory, RewardResult]
"""A trajectory and what it is worth."""

_Row = tuple[str | float | int | None, ...]


def log_trajectories(trainer: L.Trainer, rewarded: Iterable[Rewarded], number: int) -> None:
    """Writes trajectories of an iteration into the log, and as a table for Weights & Biases, MLflow and TensorBoard.

    The best and the worst rewarded come by turns. What is not public is left out.

    Args:
        trainer: whose loggers are asked; the first process alone.
        rewarded: all of the iteration that this process sampled.
        number: of trajectories, at most.
    """
    chosen, iteration = _chosen(rewarded, number), trainer.current_epoch
    for trajectory, result in chosen:
        shown = trajectory.text if len(trajectory.text) <= _SHOWN else f"{trajectory.text[:_SHOWN]}..."
        log.info("iteration %d, reward %g: %r -> %r", iteration, result.reward, trajectory.prompt.question, shown)
    rows = [_row(*pair) for pair in chosen]
    for logger in trainer.loggers if rows else ():
        _log_table(logger, rows, iteration, trainer.global_step)


def _chosen(rewarded: Iterable[Rewarded], number: int) -> list[Rewarded]:
    public = sorted((pair for pair in rewarded if pair[0].prompt.is_public), key=lambda pair: pair[1].reward)
    worst, best = public[: len(public) // 2], public[len(public) // 2 :][::-1]
    by_turns = chain.from_iterable(zip_longest(best, worst))
    return [pair for pair in by_turns if pair is not None][:number]


def _row(trajectory: Trajectory, result: RewardResult) -> _Row:
    return (
        trajectory.prompt.question,
        result.reward,
        None if trajectory.origin is None else trajectory.origin.position,
        len(trajectory.tool_calls),
        int(trajectory.response_mask.sum()),
        trajectory.finish_reason,
        trajectory.text,
    )


def _log_table(logger: Logger, rows: Sequence[_Row], iteration: int, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_table(_NAME, columns=list(COLUMNS), data=[list(row) for row in rows], step=step)
    elif isinstance(logger, MLFlowLogger):
        columns = {name: list(values) for name, values in zip(COLUMNS, zip(*rows, strict=True), strict=True)}
        logger.experiment.log_table(logger.run_id, columns, f"{_NAME}/iteration_{iteration:05d}.json")
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(_NAME, _markdown(rows), step)


def _markdown(rows: Sequence[_Row]) -> str:
    """A block of code for each row, in which a policy's text cannot pose as a part of the page."""
    lines = []
    for row in rows:
        *facts, response = zip(COLUMNS, row, strict=True)
        lines += [f"    {name}: {value}".replace("\n", " ") for name, value in facts]
        lines += [f"    {line}" for line in str(response[1]).splitlines()] + [""]
    return "\n".join(lines)

"""A run that goes on begins with a whole iteration, wherever in an iteration its checkpoint was saved."""

from __future__ import annotations

from typing import Any

import lightning as L

_PROGRESS = "epoch_progress"
_BATCHES = "epoch_loop.batch_progress"
_COUNTERS = "epoch_loop.state_dict"


def end_iteration(checkpoint: dict[str, Any]) -> None:
    """Lets the iteration of a checkpoint be the last one that was done, also if some of its mini-batches were not.

    Lightning would draw the rest of them from the loader, but rollouts are there once. A run is saved in the middle of
    an iteration where ``max_steps`` or ``max_time`` ends it, and by callbacks that count steps.

    Args:
        checkpoint: of Lightning; the state of its training loop is changed, if it has one.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:
        return
    for progress in loop[_PROGRESS].values():
        progress.update(dict.fromkeys(progress, progress["started"]))
    batches = loop[_BATCHES]
    total = batches["total"]
    # A callback at the end of a step saves before it counts as done.
    loop[_COUNTERS]["_batches_that_stepped"] += total["processed"] - total["completed"]
    total.update(dict.fromkeys(total, total["processed"]))
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False


def restart_iterations(trainer: L.Trainer) -> None:
    """Lets the training loop begin the next iteration as if it had not been interrupted.

    With ``max_steps`` Lightning takes every checkpoint for one from the middle of an epoch.

    Args:
        trainer: that is about to begin its first iteration.
    """
    trainer.fit_loop.epoch_loop.restarting = False

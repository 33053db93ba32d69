"""Options of Lightning's trainer that do nothing, or fail late, where rollouts are trained and steps taken by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)

_PRECISIONS = ("32-true", "32", "bf16-mixed", "bf16")

_IN_PLACE_OF = {
    "gradient_clip_val": ((None,), "model.max_grad_norm is its place here"),
    "gradient_clip_algorithm": ((None,), "model.max_grad_norm is its place here"),
    "accumulate_grad_batches": ((None, 1), "model.max_tokens_per_microbatch is its place here"),
    "overfit_batches": (
        (0, 0.0),
        "a data.source of as many questions as data.prompts_per_iteration trains on the same ones again and again",
    ),  # limits those too
    "limit_train_batches": ((None, 1.0), "data.prompts_per_iteration says how much an iteration trains on"),
    "barebones": (
        (False,),
        "trainer.logger, trainer.enable_checkpointing, trainer.enable_progress_bar = false leave out what takes time",
    ),
}
"""Options of the trainer, values at which they change nothing, and what does what they are for in a run of APPO."""

_REFUSED_CALLBACKS: dict[type[Callback], str] = {
    WeightAveraging: "average weights, which the engine that samples would not have",
    StochasticWeightAveraging: "average weights, which the engine that samples would not have",
    ModelPruning: "prune weights, which the engine that samples would not have by their names",
    GradientAccumulationScheduler: "accumulate gradients, which model.max_tokens_per_microbatch does",
    BatchSizeFinder: "look for a batch size: for model.max_tokens_per_microbatch `appo plan` says what fits",
    LearningRateFinder: "look for a learning rate, which needs a loss that falls: set model.optimizer.lr",
}
"""Callbacks of Lightning's, and what they would do."""


def check_trainer_options(options: Mapping[str, Any], callbacks: Iterable[L.Callback]) -> None:
    """Refuses what Lightning does for automatic optimization or for data that is read again, with what to use instead.

    Args:
        options: of the trainer, by name.
        callbacks: of the trainer.

    Raises:
        ValueError: if one of them is set.
    """
    for option, (neutral, advice) in _IN_PLACE_OF.items():
        value = options.get(option, neutral[0])
        # One batch, 1, is not all of them, 1.0.
        if repr(value) not in map(repr, neutral):
            raise ValueError(f"trainer.{option} must be left out, got {value}; {advice}")
    check_precision(options.get("precision"))
    for callback in callbacks:
        for kind, does in _REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise ValueError(f"trainer.callbacks must not {does}, got {type(callback).__name__}")


def check_precision(precision: object) -> None:
    """Refuses precisions in which log-probs and advantages would be rounded, or gradients scaled.

    Args:
        precision: of the trainer; None is the default.

    Raises:
        ValueError: if it is one of them.
    """
    if precision is not None and str(precision) not in _PRECISIONS:
        raise ValueError(
            f"trainer.precision must be 32-true or bf16-mixed, got {precision}; model.dtype=bfloat16 keeps weights and "
            "optimizer state in half precision"
        )


def check_trainer(trainer: L.Trainer) -> None:
    """Refuses the options of a trainer that is made already, as `check_trainer_options` does.

    Raises:
        ValueError: if one of them is set.
    """
    # `fast_dev_run` limits batches by itself.
    left_out = {"limit_train_batches"} if trainer.fast_dev_run else set()  # type: ignore[attr-defined]  # not declared
    options = {name: getattr(trainer, name) for name in (*_IN_PLACE_OF, "precision") if name not in left_out}
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by the trainer, not declared
    check_trainer_options(options, callbacks)

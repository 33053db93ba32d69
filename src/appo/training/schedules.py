"""Learning rates: a schedule with a warm-up, and what a resumed run makes of options that have changed."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

log = logging.getLogger(__name__)

_BESIDE_A_SCHEDULE = ("lr", "weight_decay")
"""Options that no scheduler but one of the learning rate changes by itself."""


class WarmupCosine(LambdaLR):
    """Raises the learning rate from 0 along a line, then lets it fall along half a cosine.

    Args:
        optimizer: whose learning rate is the greatest one.
        warmup_steps: optimizer steps until then.
        total_steps: optimizer steps until the fall ends.
        min_share: share of the greatest learning rate that is left, in [0, 1].
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, total_steps: int, min_share: float = 0.0) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps must lie in [0, total_steps = {total_steps}), got {warmup_steps}")
        if not 0.0 <= min_share <= 1.0:
            raise ValueError(f"min_share must lie in [0, 1], got {min_share}")

        def share(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            done = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
            return min_share + (1.0 - min_share) * 0.5 * (1.0 + math.cos(math.pi * done))

        super().__init__(optimizer, share)


def with_scheduler(optimizer: Optimizer, scheduler: Any) -> Any:
    """What Lightning's `configure_optimizers` returns.

    Args:
        optimizer: over what is trained.
        scheduler: makes a scheduler of an optimizer; None keeps the learning rate.

    Raises:
        ValueError: if the scheduler waits for a metric.
    """
    if scheduler is None:
        return optimizer
    made = scheduler(optimizer)
    if isinstance(made, ReduceLROnPlateau):
        raise ValueError(
            "model.scheduler must be one that is stepped after every optimizer step, without a metric, got "
            f"{type(made).__name__}; appo.training.schedules.WarmupCosine is one"
        )
    return {"optimizer": optimizer, "lr_scheduler": made}


def apply_options(optimizer: Optimizer, scheduler: Any) -> None:
    """Gives an optimizer whose state was restored the options that it was made with, and says which have changed.

    Args:
        optimizer: restored.
        scheduler: of its learning rate, restored; None if there is none.
    """
    for group in optimizer.param_groups:
        for name, value in optimizer.defaults.items():
            base = "initial_lr" if name == "lr" and "initial_lr" in group else name
            before = group.get(base)
            is_plain = isinstance(value, (int, float, tuple, list))
            is_left = scheduler is not None and name not in _BESIDE_A_SCHEDULE
            if not is_plain or is_left or before is None or before == value or _tuple_of(before) == _tuple_of(value):
                continue
            log.warning("the run goes on with %s=%s of its config; the checkpoint had %s", name, value, before)
            if base == "initial_lr":
                group["lr"] *= value / before if before else 1.0
            group[base] = value
    if scheduler is not None and hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]


def _tuple_of(value: Any) -> Any:
    """Lists as tuples: a checkpoint may hold either."""
    return tuple(value) if isinstance(value, list) else value

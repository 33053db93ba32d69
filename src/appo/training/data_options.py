"""What a data module makes of its options."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from appo.rollouts import RolloutBuffer


def loader(buffer: RolloutBuffer[Any]) -> DataLoader[Any]:
    """Hands out what a buffer holds, one mini-batch a step."""
    return DataLoader(buffer, batch_size=None)


def num_minibatches(prompts_per_iteration: int, prompts_per_minibatch: int) -> int:
    """Mini-batches of an iteration.

    Raises:
        ValueError: if they would not be equal.
    """
    if prompts_per_iteration % prompts_per_minibatch:
        raise ValueError(
            f"data.prompts_per_minibatch must divide data.prompts_per_iteration = {prompts_per_iteration}, "
            f"got {prompts_per_minibatch}"
        )
    return prompts_per_iteration // prompts_per_minibatch


def check_positive(**options: int | None) -> None:
    """Refuses the first of some options of `data` that is below 1; None is no number and passes.

    Raises:
        ValueError: if there is one.
    """
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"data.{name} must be positive, got {value}")

"""Options of Lightning's trainer that do nothing, or fail late, where the optimizer is stepped by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging

_IN_PLACE_OF = {
    "gradient_clip_val": "model.max_grad_norm",
    "gradient_clip_algorithm": "model.max_grad_norm",
    "accumulate_grad_batches": "model.max_tokens_per_microbatch",
}
"""Options of the trainer, and the key that does in a run of APPO what they are for."""


def check_trainer_options(options: Mapping[str, Any], callbacks: Iterable[L.Callback]) -> None:
    """Refuses what Lightning does for automatic optimization alone, with the key to use instead.

    Args:
        options: of the trainer, by name.
        callbacks: of the trainer.

    Raises:
        ValueError: if one of them is set.
    """
    for option, key in _IN_PLACE_OF.items():
        value = options.get(option)
        if value is not None and not (option == "accumulate_grad_batches" and value == 1):
            raise ValueError(f"trainer.{option} must be left out, got {value}; {key} is its place here")
    for callback in callbacks:
        if isinstance(callback, (WeightAveraging, StochasticWeightAveraging)):
            raise ValueError(
                "trainer.callbacks must not average weights, which the engine that samples would not have, got "
                f"{type(callback).__name__}"
            )

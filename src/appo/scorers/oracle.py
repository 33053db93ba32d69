"""What an environment itself knows of the influence of every decision."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.functions import as_function
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class Oracle(Scorer):
    """The influence of every decision on the reward, where the environment can enumerate it: ``Var_a Q(prefix, a)``.

    The bound that other scorers are held against, for environments small enough that the expected reward of every
    choice is known. It calls ``influence(trajectory, tokens, **options)``, a function or a method of such an
    environment, with the text of every token; it returns one number a token of the trajectory, prompt included. Those
    of tokens that were not sampled do not count.
    """

    reads_log_probs = False

    influence: str | Callable[..., Any]
    """Its import path ``package.module:name``; in Python, the function itself will do."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed by name to every call."""

    def __post_init__(self) -> None:
        try:
            inspect.signature(as_function(self.influence)).bind(None, None, **self.options)
        except TypeError as error:
            raise ValueError(
                f"influence must take a trajectory, its tokens and the options {self.options}, "
                f"got {self.influence!r} ({error})"
            ) from error

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        function = as_function(self.influence)
        influence = torch.zeros_like(batch.entropies)
        for row, trajectory in enumerate(context.records()):
            tokens = context.tokens(row)[: len(trajectory)]
            values = [float(value) for value in function(trajectory, tokens, **self.options)]
            if len(values) != len(trajectory) or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"influence must return a finite number for each of the {len(trajectory)} tokens of a trajectory "
                    f"of prompt {trajectory.prompt.id}, got {len(values)} numbers, "
                    f"{sum(not math.isfinite(value) for value in values)} of them not finite"
                )
            influence[row, : len(values)] = torch.tensor(values)
        influence = influence.where(batch.response_mask, 0.0)
        return Scores(influence.where(batch.response_mask, float("-inf")), factors={"influence": influence})

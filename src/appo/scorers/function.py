"""A user's own function as a scorer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.functions import as_function
from appo.scorers.base import SCORERS, Scorer, Scores


@SCORERS.register
@dataclass(frozen=True)
class FunctionScorer(Scorer):
    """Calls a function: ``function(batch, context, **options)``.

    It returns ``[B, T]`` scores, higher is better, or `Scores` to say more; what it says of tokens that were not
    sampled does not count. Its signature is checked when the scorer is made.
    """

    function: str | Callable[..., Any]
    """Its import path ``package.module:name``; in Python, the function itself will do."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed by name to every call."""

    def __post_init__(self) -> None:
        try:
            inspect.signature(as_function(self.function)).bind(None, None, **self.options)
        except TypeError as error:
            raise ValueError(
                f"function must take a batch, a context and the options {self.options}, got {self.function!r} ({error})"
            ) from error

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        scores = as_function(self.function)(batch, context, **self.options)
        if isinstance(scores, Scores):
            return scores
        shape = list(batch.token_ids.shape)
        if not isinstance(scores, Tensor) or list(scores.shape) != shape:
            got = list(scores.shape) if isinstance(scores, Tensor) else repr(scores)
            raise ValueError(f"{self.function} must return a tensor of shape {shape} or Scores, got {got}")
        return Scores(scores.where(batch.response_mask, float("-inf")))


def as_scorer(scorer: Scorer | Callable[..., Tensor | Scores]) -> Scorer:
    """The scorer; a plain function of a batch and a context becomes one.

    Args:
        scorer: a scorer, or a function that takes what `Scorer.__call__` takes.

    Raises:
        ValueError: if it is neither.
    """
    return scorer if isinstance(scorer, Scorer) else FunctionScorer(scorer)

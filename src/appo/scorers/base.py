"""What every scorer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.registry import Registry


@dataclass(frozen=True, eq=False)
class Scores:
    """How much each position is worth branching at.

    Attributes:
        values: ``[B, T]``, higher is better; ``-inf`` where no branch may start, and never ``+inf``.
        preferred: ``[B, T]`` bool, positions that are chosen before any other; None prefers none.
        factors: ``[B, T]`` each, what the score was made of, by name; only their mean and spread over sampled tokens
            are logged.
        at_turns: the chosen positions begin turns: whatever token stands there, and whatever `rollout.branching.split`
            says, a branch leaves before it, right behind a tool result or the prompt.
    """

    values: Tensor
    preferred: Tensor | None = None
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    at_turns: bool = False

    def __post_init__(self) -> None:
        if (self.values == float("inf")).any():
            row, position = (self.values == float("inf")).nonzero()[0].tolist()
            raise ValueError(f"scores must be finite or -inf, got inf in row {row} at position {position}")

    @staticmethod
    def join(parts: Sequence[tuple[Sequence[int], Scores]], num_rows: int) -> Scores:
        """The scores of several batches as those of one; where none of them has a position, no branch may start.

        Args:
            parts: numbers of rows in the result, and scores of these rows in their order.
            num_rows: of the result.
        """
        shape = num_rows, max((scores.values.shape[1] for _, scores in parts), default=0)
        values = torch.full(shape, float("-inf"))
        factors = {name: torch.zeros(shape) for _, scores in parts for name in scores.factors}
        preferred = torch.zeros(shape, dtype=torch.bool)
        for rows, scores in parts:
            width = scores.values.shape[1]
            values[list(rows), :width] = scores.values.to(values)
            if scores.preferred is not None:
                preferred[list(rows), :width] = scores.preferred.to(preferred)
            for name, factor in scores.factors.items():
                factors[name][list(rows), :width] = factor.to(factors[name])
        is_preferred = any(scores.preferred is not None for _, scores in parts)
        return Scores(values, preferred if is_preferred else None, factors, any(scores.at_turns for _, scores in parts))

    def to(self, device: torch.device) -> Scores:
        """The same scores on another device."""
        return replace(
            self,
            values=self.values.to(device),
            preferred=None if self.preferred is None else self.preferred.to(device),
            factors={name: factor.to(device) for name, factor in self.factors.items()},
        )


class Scorer(ABC):
    """Scores positions of finished trajectories for branching.

    Attributes:
        reads_log_probs: True if `old_log_probs` or `entropies` of the batch are read; False saves the pass that
            computes them.
        compares_policies: True if the score says how the current policy differs from the one that sampled.
    """

    # Not annotated: the command line reads a base's annotations in the module of the component, which may lack names.
    reads_log_probs = True
    compares_policies = False

    @abstractmethod
    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        """Scores the sampled tokens of `batch`: the trajectories of one prompt, evaluated and rewarded.

        Args:
            batch: with `old_log_probs` and `entropies` of the policy at the moment of branching.
            context: randomness, the records, the tokenizer and the policy.
        """


SCORERS: Registry[Scorer] = Registry("scorer", group="appo.scorers")
"""Scorers by class name, those of plug-ins included."""

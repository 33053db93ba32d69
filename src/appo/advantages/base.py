"""What every advantage estimator offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.registry import Registry


class AdvantageEstimator(ABC):
    """Turns the rewards of an iteration into advantages of tokens.

    Attributes:
        reads_log_probs: True if `old_log_probs` or `entropies` of the batch are read, which are then computed.
    """

    # Not annotated: the command line reads a base's annotations in the module of the component, which may lack names.
    reads_log_probs = False

    @abstractmethod
    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        """Returns ``[B, T]`` advantages of all rows, of whatever is trained; 0 where `response_mask` is False.

        Args:
            batch: rewarded roots and branches that count; where none does on this process, all of them with a
                `train_mask` that trains none, so that processes may exchange statistics.
            context: randomness, the records, the tokenizer and the policy.
        """


ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage estimator", group="appo.advantages")
"""Advantage estimators by class name, those of plug-ins included."""

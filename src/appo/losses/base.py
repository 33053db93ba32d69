"""What every loss offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.registry import Registry


class Loss(ABC):
    """What an optimizer step minimizes."""

    @property
    def needs_reference(self) -> bool:
        """True if `TrajectoryBatch.ref_log_probs` must be there."""
        return False

    @property
    def needs_old_log_probs(self) -> bool:
        """True if `TrajectoryBatch.old_log_probs` are read; then rows are evaluated before the policy is updated."""
        return True

    @abstractmethod
    def __call__(
        self, log_probs: Tensor, entropies: Tensor, batch: TrajectoryBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the share of one micro-batch in the loss of its optimizer step.

        Shares add up: the sum over the micro-batches of a step is the loss of the whole step, and so are the metrics.

        Args:
            log_probs: ``[B, T]`` of the sampled tokens under the live policy, with gradient; 0 elsewhere.
            entropies: ``[B, T]`` nats, of the live policy's distributions, with gradient; 0 elsewhere.
            batch: the rows, with `advantages`, and with `old_log_probs` of the policy that begins the update.

        Returns:
            The scalar loss, and detached scalar metrics by name.
        """

    def token_values(self, log_probs: Tensor, batch: TrajectoryBatch) -> dict[str, Tensor]:
        """What the loss makes of single tokens, for people to look at; nothing where a loss does not say.

        Args:
            log_probs: as the loss gets them, without gradient.
            batch: likewise.

        Returns:
            ``[B, T]`` by name: `importance_weights`, the ratio that is clipped, and `loss_shares`, the part of a token
            in the loss of its optimizer step times the trained tokens of that: their mean is the loss.
        """
        return {}


LOSSES: Registry[Loss] = Registry("loss", group="appo.losses")
"""Losses by class name, those of plug-ins included."""

"""The way of the weights from the trainer to the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from torch import Tensor

from appo.engines import Engine
from appo.rollouts.log_prob_check import WeightProbe

log = logging.getLogger(__name__)


class EngineMismatchError(RuntimeError):
    """The engine samples from another policy than the one that is trained."""


class WeightSync:
    """Brings the engine to the policy's version, and makes sure that it arrived there.

    Args:
        engine: started.
        weights: the policy's parameters by name, as they are when it is called.
        probe: compares engine and trainer.
        tolerance: largest difference of two log-probs, in nats.
    """

    def __init__(
        self, engine: Engine, weights: Callable[[], Iterable[tuple[str, Tensor]]], probe: WeightProbe, tolerance: float
    ) -> None:
        self.engine = engine
        self.weights = weights
        self.probe = probe
        self.tolerance = tolerance
        self.largest_difference = 0.0
        """That the probe has met in this run, in nats."""
        self._version: int | None = None

    def __call__(self, version: int) -> None:
        """Does nothing if the engine has this version; a policy that was never updated is in the engine as it started.

        Raises:
            EngineMismatchError: if log-probs of the engine and of the trainer do not agree afterwards.
        """
        if version == self._version:
            return
        if version > 0:
            self.engine.update_weights(self.weights(), version)
        difference = self.probe().largest
        if not difference <= self.tolerance:
            raise EngineMismatchError(
                f"log-probs of the engine must be those of the trainer's policy (version {version}) within "
                f"rollout.sampling.max_mismatch = {self.tolerance:g} nats, got a difference of {difference:.3g}"
            )
        log.debug("version %d: engine and trainer agree within %.1e nats", version, difference)
        self.largest_difference = max(self.largest_difference, difference)
        self._version = version

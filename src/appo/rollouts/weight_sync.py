"""The way of the weights from the trainer to the engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from torch import Tensor

from appo.distributed import comm
from appo.engines import Engine, LostUpdateError
from appo.rollouts.log_prob_check import Mismatch, WeightProbe

log = logging.getLogger(__name__)

_RARE = 5.0
"""Times the tolerance of their mean from which on the distance of a single token is told."""


class EngineMismatchError(RuntimeError):
    """The engine samples from another policy than the one that is trained."""


class WeightSync:
    """Brings the engine to the policy's version, and makes sure that it arrived there.

    Args:
        engine: started.
        weights: the policy's parameters by name, as they are when it is called.
        probe: compares engine and trainer.
        tolerance: largest mean distance of two log-probs, in nats. The distance of a single token is only warned of:
            rounding may part them anywhere, weights that did not arrive do so everywhere.
        worst: that the run has met before it was resumed.
    """

    def __init__(
        self,
        engine: Engine,
        weights: Callable[[], Iterable[tuple[str, Tensor]]],
        probe: WeightProbe,
        tolerance: float,
        worst: Mismatch = Mismatch(),  # noqa: B008 - it is frozen
    ) -> None:
        self.engine = engine
        self.weights = weights
        self.probe = probe
        self.tolerance = tolerance
        self.worst = worst
        """The largest mean and the largest distance that the probe has met in this run."""
        self._version: int | None = None

    def __call__(self, version: int) -> None:
        """Does nothing if the engine has this version; a policy that was never updated is in the engine as it started.

        Several processes call it at the same time.

        Raises:
            EngineMismatchError: if log-probs of the engine and of the trainer do not agree afterwards.
        """
        if version == self._version and self.engine.has_weights:
            return
        if version > 0 or not self.engine.has_weights:
            self._bring(version)
        mismatch = self.probe(version)
        if any(comm.all_gather(not mismatch.mean <= self.tolerance)):
            mismatch = self.probe(version, 1)  # of other tokens, which weights that did not arrive show in as well
        if not mismatch.mean <= self.tolerance:
            raise EngineMismatchError(
                f"log-probs of the engine must be those of the trainer's policy (version {version}) within "
                f"rollout.sampling.max_mismatch = {self.tolerance:g} nats in the mean, got {mismatch.mean:.3g}, "
                f"at most {mismatch.largest:.3g}"
            )
        log.debug("version %d: engine and trainer agree within %.1e nats", version, mismatch.largest)
        if self.worst.largest <= _RARE * self.tolerance < mismatch.largest:
            log.warning(
                "log-probs of engine and trainer differ by %.3g nats at one token, by %.3g in the mean; "
                "see rollout/probe_max",
                mismatch.largest,
                mismatch.mean,
            )
        self.worst = Mismatch(max(self.worst.mean, mismatch.mean), max(self.worst.largest, mismatch.largest))
        self._version = version

    def _bring(self, version: int) -> None:
        while True:
            try:
                return self.engine.update_weights(self.weights(), version)
            except LostUpdateError as error:  # how often that may be is the engine's to say
                log.warning("%s: they are brought again", error)

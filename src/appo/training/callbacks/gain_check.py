"""Whether the likelihood gain can say anything in a run."""

from __future__ import annotations

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)


def warns_of_unchanged_policy(metrics: Mapping[str, float], comes_between: bool, noise: float) -> bool:
    """Says that the likelihood gain says nothing, and why, if that is so.

    Args:
        metrics: of the rollouts of an iteration with branches.
        comes_between: whether updates come between sampling and branching at all.
        noise: mean distance in nats of log-probs of the engine from the trainer's, where the gain compares with those
            of the engine; else 0.

    Returns:
        Whether it was said.
    """
    distance = metrics.get("log_ratio_std", 0.0)
    if metrics.get("roots_changed_share", 1.0) == 0.0:
        log.warning(
            "the policy has not changed between sampling and branching, so the likelihood gain says nothing and "
            "scores rest on entropy alone; %s",
            "no step in between had a gradient: all rewards of its groups were equal"
            if comes_between
            else "see rollout.branching.when, rollout.sampling.lag",
        )
        return True
    if noise and distance <= noise:
        log.warning(
            "the policy has changed by %.2g nats a token between sampling and branching, and log-probs of the "
            "engine, with which the likelihood gain compares roots that are sampled beside the training, differ "
            "from the trainer's by %.2g: the gain is noise; see rollout.sampling.overlap",
            distance,
            noise,
        )
        return True
    return False

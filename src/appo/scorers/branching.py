"""The Branching Score, and the likelihood gain alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.functional import future_likelihood_gain, masked_standardize
from appo.scorers.base import SCORERS, Scorer, Scores

Scope = Literal["trajectory", "prompt", "batch"]
"""Whose tokens share one mean and one standard deviation."""


class _Gain(NamedTuple):
    """What the policy has made of what follows each token.

    Attributes:
        values: ``[B, T]`` clipped gains; 1 where no change follows.
        is_saturated: ``[B, T]`` 1.0 where the clip cuts the gain off, else 0.0.
        is_changed: ``[B, 1]`` bool, True on rows with a token that another version sampled than has evaluated them.
    """

    values: Tensor
    is_saturated: Tensor
    is_changed: Tensor


@dataclass(frozen=True)
class GainScorer(Scorer):
    """A scorer that looks at the likelihood gain.

    Of a token, the current policy is compared with the one that sampled it: ``old_log_probs - sampling_log_probs``, or
    `behavior_log_probs` where those were not taken. Where the versions of the two are the same the log-ratio is 0, not
    what two implementations or two roundings of one policy differ by.
    """

    compares_policies = True

    half_life: float | None = 32.0
    """Tokens after which a log-ratio counts half in the gain. `null`: all that follows counts whole, and most gains of
    long trajectories lie on a bound of the clip."""
    clip: float = 0.2
    """Half-width of the range around 1 that the likelihood gain is clipped to; 0 leaves it unclipped."""
    high_only: bool = False
    """Never lets a gain that is clipped fall below 1."""
    scope: Scope = "trajectory"
    """Whose tokens share one mean and one standard deviation: `trajectory`, `prompt` or `batch`."""

    def __post_init__(self) -> None:
        if self.half_life is not None and not self.half_life > 0.0:
            raise ValueError(f"half_life must be positive or null, got {self.half_life}")
        if not 0.0 <= self.clip < 1.0:
            raise ValueError(f"clip must lie in [0, 1), got {self.clip}")
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope must be {', '.join(get_args(Scope))}, got {self.scope!r}")

    def gain(self, batch: TrajectoryBatch) -> _Gain:
        """The likelihood gain of every sampled token."""
        mask = batch.response_mask
        is_changed = mask & (batch.policy_versions != batch.evaluated_by.unsqueeze(-1))
        sampling = batch.behavior_log_probs if batch.sampling_log_probs is None else batch.sampling_log_probs
        log_ratio = (batch.old_log_probs - sampling).where(is_changed, 0.0)
        discount = 1.0 if self.half_life is None else 2.0 ** (-1.0 / self.half_life)
        raw, values = (
            future_likelihood_gain(log_ratio, mask, discount, clip, self.high_only) for clip in (0.0, self.clip)
        )
        return _Gain(values, ((raw != values) & mask).to(values), is_changed.any(-1, keepdim=True))

    def standardize(self, values: Tensor, batch: TrajectoryBatch) -> Tensor:
        """``[B, T]`` z-scores among the sampled tokens of the scope; 0 elsewhere."""
        group = None
        if self.scope != "trajectory":
            group = batch.group if self.scope == "prompt" else torch.zeros_like(batch.group)
        return masked_standardize(values, batch.response_mask, group)


@SCORERS.register
@dataclass(frozen=True)
class BranchingScore(GainScorer):
    """Token entropy times the likelihood gain of what follows, both standardized.

    ``score_t = z(entropy)_t * z(gain)_t``; positions where both factors are positive are preferred. Of a trajectory
    that the policy has sampled as it is now there is no gain: its score is ``z(entropy)`` alone.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    strict: bool = True
    """Prefers positions where both factors are positive; False goes by the product alone, in which two negative factors
    count as much."""

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        mask, gain = batch.response_mask, self.gain(batch)
        z_entropy = self.standardize(batch.entropies, batch)
        z_gain = torch.where(gain.is_changed, self.standardize(gain.values, batch), 1.0)
        values = z_entropy * z_gain
        return Scores(
            values=values.where(mask, float("-inf")),
            preferred=mask & (z_entropy > 0) & (z_gain > 0) & (values > 0) if self.strict else None,
            factors={
                "entropy": batch.entropies,
                "likelihood_gain": gain.values,
                "gain_saturated": gain.is_saturated,
            },
        )


@SCORERS.register
@dataclass(frozen=True)
class LikelihoodGain(GainScorer):
    """Likelihood gain of what follows, standardized: the Branching Score without its entropy.

    ``score_t = z(gain)_t``. Of a trajectory that the policy has sampled as it is now all scores are 0, and where there
    is no other the first positions are taken.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        gain = self.gain(batch)
        values = torch.where(gain.is_changed, self.standardize(gain.values, batch), 0.0)
        return Scores(
            values.where(batch.response_mask, float("-inf")),
            factors={"likelihood_gain": gain.values, "gain_saturated": gain.is_saturated},
        )

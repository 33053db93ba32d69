"""The clipped surrogate with its penalties: what all losses of the project share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.functional import (
    Aggregation,
    ClipEvents,
    aggregation_weights,
    clip_events,
    dual_clip_surrogate,
    kl_estimate,
    rows_near_behavior,
    truncated_importance_weight,
)
from appo.losses.base import Loss


class _Terms(NamedTuple):
    """What a surrogate is added up of, ``[B, T]`` each.

    Attributes:
        log_ratio: of single tokens, with gradient; 0 on tokens that are not trained.
        importance: the log of the ratio that is clipped.
        losses: of the surrogate, before they are aggregated.
        events: where clipping decides.
        means: values whose mean is a metric.
    """

    log_ratio: Tensor
    importance: Tensor
    losses: Tensor
    events: ClipEvents
    means: dict[str, Tensor]


@dataclass(frozen=True)
class SurrogateLoss(Loss):
    """Clipped surrogate of weighted advantages, minus an entropy bonus, plus a divergence from the reference.

    Subclasses say how advantages are weighted and which rows count. Where the batch knows the totals of its optimizer
    step, losses are divided by those, rows that are left out included, so that the shares of micro-batches add up
    whatever the cut; otherwise by what counts in this batch.
    """

    clip_low: float = 0.2
    """How far the importance ratio may fall below 1 before it stops counting; 1 leaves it unbounded."""
    clip_high: float = 0.2
    """How far the importance ratio may rise above 1 before it stops counting."""
    dual_clip: float | None = None
    """Importance ratio from which on a negative advantage stops counting, above 1; none leaves it unbounded."""
    ratio_to: Literal["update", "sampling"] = "update"
    """What the importance ratio compares with: the policy that begins the update of a mini-batch, or the one that
    sampled. They differ where the policy was updated in between, by `rollout.branching.when` or
    `rollout.sampling.lag`."""
    behavior_correction: Literal["truncate", "mask", "off"] = "truncate"
    """What is done, with ``ratio_to: update``, about the distance between the policy that sampled and the one that
    begins the update: `truncate` weights tokens by their importance, at most `behavior_cap`; `mask` leaves out rows
    whose importance weights have a geometric mean beyond `behavior_cap`, or below its inverse; `off` does nothing."""
    behavior_cap: float = 2.0
    """Bound of `behavior_correction`, at least 1."""
    kl: Literal["abs", "k2", "k3"] = "k3"
    """Divergence from the reference, estimated at each token: `k2` has in expectation the gradient of KL(policy ||
    reference), `k3` that of KL(reference || policy), `abs` that of the total variation, doubled. The gradient of `k1`
    is 0 in expectation, so it is none of them."""
    kl_coef: float = 0.0
    """Weight of the divergence; 0 needs no reference."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    aggregation: Aggregation = "token-mean"
    """`token-mean`, or the mean over rows of their means (`sequence-mean`), of their sums (`sequence-sum`), or of their
    sums divided by `aggregation_length` (`constant`)."""
    aggregation_length: int | None = None
    """Tokens that `aggregation: constant` divides by, such as the longest response allowed."""
    rows: Literal["trained", "all"] = "trained"
    """Rows that all aggregations but `token-mean` divide by: those that are `trained`, or `all` trajectories of their
    prompts, branches that only carry rewards included, as in Eq. (8) of APPO's paper."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.clip_low <= 1.0:
            raise ValueError(f"clip_low must lie in [0, 1], got {self.clip_low}")
        if not self.clip_high >= 0.0:
            raise ValueError(f"clip_high must not be negative, got {self.clip_high}")
        if self.dual_clip is not None and not self.dual_clip > 1.0 + self.clip_high:
            raise ValueError(f"dual_clip must be above 1 + clip_high = {1.0 + self.clip_high}, got {self.dual_clip}")
        if self.ratio_to not in ("update", "sampling"):
            raise ValueError(f"ratio_to must be update or sampling, got {self.ratio_to!r}")
        if self.behavior_correction not in ("truncate", "mask", "off"):
            raise ValueError(f"behavior_correction must be truncate, mask or off, got {self.behavior_correction!r}")
        if not self.behavior_cap >= 1.0:
            raise ValueError(f"behavior_cap must be at least 1, got {self.behavior_cap}")
        if self.kl not in ("abs", "k2", "k3"):
            raise ValueError(f"kl must be abs, k2 or k3, got {self.kl!r}")
        if not self.kl_coef >= 0.0:
            raise ValueError(f"kl_coef must not be negative, got {self.kl_coef}")
        if self.aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation must be {', '.join(get_args(Aggregation))}, got {self.aggregation!r}")
        if self.rows not in ("trained", "all"):
            raise ValueError(f"rows must be trained or all, got {self.rows!r}")
        if (self.aggregation == "constant") != (self.aggregation_length is not None):
            raise ValueError(
                "aggregation_length must be given with aggregation=constant and only then, "
                f"got {self.aggregation_length} with aggregation={self.aggregation}"
            )
        if self.aggregation_length is not None and self.aggregation_length < 1:
            raise ValueError(f"aggregation_length must be positive, got {self.aggregation_length}")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0.0

    @property
    def needs_old_log_probs(self) -> bool:
        return self.ratio_to == "update"

    def weigh(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weights the advantages by what the policy has become.

        Args:
            log_ratio: ``[B, T]``, without gradient; 0 on tokens that are not trained.
            advantages: ``[B, T]``; 0 on tokens that are not trained.
            mask: ``[B, T]`` bool, True on tokens that are trained.

        Returns:
            ``[B, T]`` advantages, each with the sign it had, and ``[B, T]`` values by name whose mean is a metric.
        """
        return advantages, {}

    def importance(self, log_ratio: Tensor, mask: Tensor) -> Tensor:
        """The log of the ratio that is clipped.

        Args:
            log_ratio: ``[B, T]`` of single tokens, with gradient; 0 on tokens that are not trained.
            mask: ``[B, T]`` bool, True on tokens that are trained.

        Returns:
            ``[B, T]``; 0 on tokens that are not trained.
        """
        return log_ratio

    def surrogate(self, log_ratio: Tensor, log_probs: Tensor, advantages: Tensor) -> Tensor:
        """The losses of single tokens.

        Args:
            log_ratio: ``[B, T]`` that `importance` returned.
            log_probs: ``[B, T]`` of the live policy, with gradient; 0 on tokens that are not trained.
            advantages: ``[B, T]`` that `weigh` returned.

        Returns:
            ``[B, T]`` losses.
        """
        return dual_clip_surrogate(log_ratio, advantages, self.clip_low, self.clip_high, self.dual_clip)

    def kept_rows(self, events: ClipEvents) -> Tensor | None:
        """``[B]`` bool, True on rows whose surrogate counts; None if all do."""
        return None

    def __call__(
        self, log_probs: Tensor, entropies: Tensor, batch: TrajectoryBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.trained
        log_ratio, _, losses, events, means = self._terms(log_probs, batch)
        kept = self.kept_rows(events)
        loss = self._aggregate(losses, mask if kept is None else mask & kept.unsqueeze(-1), batch)
        metrics = {"policy_loss": loss.detach()}
        entropy = entropies.where(mask, 0.0)
        if self.entropy_coef != 0.0:
            loss = loss - self.entropy_coef * self._aggregate(entropy, mask, batch)
        if self.kl_coef > 0.0:
            means["kl"] = self._divergence(log_probs, batch)
            loss = loss + self.kl_coef * self._aggregate(means["kl"], mask, batch)
        means |= {
            "entropy": entropy,
            "approx_kl": -log_ratio,
            "sampling_log_ratio": (batch.old_log_probs - batch.behavior_log_probs).where(mask, 0.0),
            "ratio": log_ratio.detach().exp(),
            "clip_fraction_high": events.high,
            "clip_fraction_low": events.low,
            "dual_clip_fraction": events.dual,
        }
        metrics |= _token_means(means, batch)
        if kept is not None:
            metrics["filtered_rows"] = (~kept).sum() / (batch.num_rows or max(1, len(batch)))
        return loss, metrics

    @torch.no_grad()
    def token_values(self, log_probs: Tensor, batch: TrajectoryBatch) -> dict[str, Tensor]:
        terms = self._terms(log_probs, batch)
        kept = self.kept_rows(terms.events)
        mask = batch.trained if kept is None else batch.trained & kept.unsqueeze(-1)
        num_tokens = batch.num_tokens or int(batch.trained.sum())
        return {
            "importance_weights": terms.importance.exp(),
            "loss_shares": terms.losses * self._weights(mask, batch) * num_tokens,
        }

    def _terms(self, log_probs: Tensor, batch: TrajectoryBatch) -> _Terms:
        mask = batch.trained
        # Masked before any exp: what stands behind the mask must not reach the gradient as 0 * inf.
        log_ratio = (log_probs - self._compared_with(batch)).where(mask, 0.0)
        assert batch.advantages is not None
        advantages, means = self.weigh(log_ratio.detach(), batch.advantages.where(mask, 0.0), mask)
        importance = self.importance(log_ratio, mask)
        events = clip_events(importance, advantages, self.clip_low, self.clip_high, self.dual_clip)
        losses = self.surrogate(importance, log_probs.where(mask, 0.0), advantages)
        correction = self._behavior_weight(batch)
        if correction is not None:
            losses = losses * correction
            means["behavior_weight"] = correction.expand_as(losses)
        return _Terms(log_ratio, importance, losses, events, means)

    def _compared_with(self, batch: TrajectoryBatch) -> Tensor:
        return batch.behavior_log_probs if self.ratio_to == "sampling" else batch.old_log_probs

    def _behavior_weight(self, batch: TrajectoryBatch) -> Tensor | None:
        """``[B, T]`` or ``[B, 1]`` weights of the surrogate's terms; None if all are 1."""
        if self.behavior_correction == "off" or self.ratio_to == "sampling":
            return None
        given = batch.old_log_probs, batch.behavior_log_probs, batch.trained
        if self.behavior_correction == "mask":
            return rows_near_behavior(*given, self.behavior_cap).unsqueeze(-1).to(batch.old_log_probs.dtype)
        return truncated_importance_weight(*given, self.behavior_cap)

    def _divergence(self, log_probs: Tensor, batch: TrajectoryBatch) -> Tensor:
        if batch.ref_log_probs is None:
            raise ValueError(f"ref_log_probs must be given with kl_coef={self.kl_coef}, got None")
        mask = batch.trained
        return kl_estimate(log_probs.where(mask, 0.0), batch.ref_log_probs.where(mask, 0.0), self.kl)

    def _aggregate(self, values: Tensor, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        return (values * self._weights(mask, batch)).sum()

    def _weights(self, mask: Tensor, batch: TrajectoryBatch) -> Tensor:
        num_rows = (batch.num_trajectories or len(batch)) if self.rows == "all" else batch.num_rows
        return aggregation_weights(
            mask,
            self.aggregation,
            num_tokens=batch.num_tokens,
            num_rows=num_rows,
            length=self.aggregation_length,
        )


def _token_means(values: dict[str, Tensor], batch: TrajectoryBatch) -> dict[str, Tensor]:
    """The share of this batch in the mean of each ``[B, T]`` value over the trained tokens of the step."""
    weights = aggregation_weights(batch.trained, "token-mean", num_tokens=batch.num_tokens)
    with torch.no_grad():
        return {name: (value * weights).sum() for name, value in values.items()}

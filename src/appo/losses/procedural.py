"""The loss of Agentic Procedural Policy Optimization."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from appo.functional import ClipEvents, future_likelihood_weight, rows_within_dual_clip
from appo.losses.base import LOSSES
from appo.losses.surrogate import SurrogateLoss


@LOSSES.register
@dataclass(frozen=True)
class ProceduralLoss(SurrogateLoss):
    """Dual-clipped surrogate of advantages that grow with the future likelihood of their trajectory.

    ``A_t * (1 + future_weight * f_t)`` with ``f_t = clip(exp(F_t))``; `F` is the discounted sum of
    the log-ratios from `t` on. Where nothing has become likelier or less likely, ``f_t = 1``.

    See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384).
    """

    clip_high: float = 0.28
    """How far the importance ratio may rise above 1 before it stops counting."""
    dual_clip: float | None = 3.0
    """Importance ratio from which on a negative advantage stops counting, above 1; tokens above it do not take part
    in the future likelihood either. None leaves both unbounded."""
    future_weight: float = 1.0
    """Weight of the future likelihood; 0 leaves advantages as they are."""
    normalized: bool = False
    """Divides the factor of the advantages by ``1 + future_weight``, so that it is about 1 and the norm of the gradient
    is clipped no earlier than without a future likelihood. A constant, so that a step is the same however it is cut."""
    future_half_life: float = 64.0
    """Tokens after which a log-ratio counts half in the future likelihood."""
    future_clip: float = 0.2
    """Half-width of the range around 1 that the future likelihood is clipped to; 0 bounds it by 10 alone."""
    high_only: bool = True
    """Never lets the future likelihood fall below 1."""
    safety_threshold: float | None = None
    """Where the advantage is negative and the importance ratio above this, the future likelihood is brought into
    [0.8, 1]. Above `dual_clip` it changes no gradient: none flows there. `null`: never."""
    sequence_filter: bool = True
    """Leaves out rows with two or more tokens above `dual_clip` that have a negative advantage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.future_weight >= 0.0:
            raise ValueError(f"future_weight must not be negative, got {self.future_weight}")
        if not self.future_half_life > 0.0:
            raise ValueError(f"future_half_life must be positive, got {self.future_half_life}")
        if not 0.0 <= self.future_clip < 1.0:
            raise ValueError(f"future_clip must lie in [0, 1), got {self.future_clip}")
        if self.safety_threshold is not None and not self.safety_threshold > 0.0:
            raise ValueError(f"safety_threshold must be positive, got {self.safety_threshold}")
        if self.sequence_filter and self.dual_clip is None:
            raise ValueError("dual_clip must be given with sequence_filter=true, got null")

    def weigh(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        weight = future_likelihood_weight(
            log_ratio,
            advantages,
            mask,
            half_life=self.future_half_life,
            clip=self.future_clip,
            high_only=self.high_only,
            max_ratio=self.dual_clip,
            safety_threshold=self.safety_threshold,
        )
        factor = 1.0 + self.future_weight * weight
        if self.normalized:
            factor = factor / (1.0 + self.future_weight)
        return advantages * factor, {"future_weight": weight}

    def kept_rows(self, events: ClipEvents) -> Tensor | None:
        return rows_within_dual_clip(events.dual) if self.sequence_filter else None

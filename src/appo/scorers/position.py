"""The position alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.scorers.base import SCORERS, Scorer, Scores

Place = Literal["early", "middle", "late"]
"""Part of a trajectory."""


@SCORERS.register
@dataclass(frozen=True)
class Position(Scorer):
    """How early, late or central a token stands among the sampled tokens of its trajectory: a control for the others.

    With ``u_t`` in [0, 1] the share of the sampled tokens that come before, of those but itself, the score is ``1 - u``
    for `early`, ``u`` for `late`, and ``1 - |2 u - 1|`` for `middle`; u is 0 for a single token.
    """

    reads_log_probs = False

    prefer: Place = "early"
    """Part of a trajectory that is branched at first: `early`, `middle` or `late`."""

    def __post_init__(self) -> None:
        if self.prefer not in get_args(Place):
            raise ValueError(f"prefer must be {', '.join(get_args(Place))}, got {self.prefer!r}")

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Scores:
        mask = batch.response_mask
        others = (mask.sum(-1, keepdim=True) - 1).clamp(min=1)
        share = ((mask.cumsum(-1) - 1) / others).to(batch.entropies.dtype)
        if self.prefer == "middle":
            values = 1.0 - (2.0 * share - 1.0).abs()
        else:
            values = share if self.prefer == "late" else 1.0 - share
        return Scores(values.where(mask, float("-inf")))

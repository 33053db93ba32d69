"""The plain clipped surrogate."""

from __future__ import annotations

from dataclasses import dataclass

from appo.losses.base import LOSSES
from appo.losses.surrogate import SurrogateLoss


@LOSSES.register
@dataclass(frozen=True)
class ClippedLoss(SurrogateLoss):
    """Clipped surrogate of the advantages as they are.

    See "Proximal Policy Optimization Algorithms" (https://arxiv.org/abs/1707.06347), Eq. (7).
    """

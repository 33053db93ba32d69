"""What is minimized."""

from appo.losses.base import LOSSES, Loss
from appo.losses.clipped import ClipBalancedLoss, ClippedImportanceLoss, ClippedLoss, SequenceClippedLoss
from appo.losses.procedural import ProceduralLoss
from appo.losses.surrogate import SurrogateLoss

__all__ = [
    "LOSSES",
    "ClipBalancedLoss",
    "ClippedImportanceLoss",
    "ClippedLoss",
    "Loss",
    "ProceduralLoss",
    "SequenceClippedLoss",
    "SurrogateLoss",
]

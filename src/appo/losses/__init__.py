"""What is minimized."""

from appo.losses.base import LOSSES, Loss
from appo.losses.clipped import ClippedLoss
from appo.losses.procedural import ProceduralLoss
from appo.losses.surrogate import SurrogateLoss

__all__ = ["LOSSES", "ClippedLoss", "Loss", "ProceduralLoss", "SurrogateLoss"]

"""How outcomes become credit."""

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.advantages.group import GroupAdvantage
from appo.advantages.procedural import ProceduralAdvantage

__all__ = ["ADVANTAGES", "AdvantageEstimator", "GroupAdvantage", "ProceduralAdvantage"]

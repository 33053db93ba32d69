"""How rewards become advantages."""

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.advantages.entropy_aware import EntropyAwareAdvantage
from appo.advantages.group import GlobalBatchAdvantage, GroupAdvantage, LeaveOneOut, TrajectoryAdvantage
from appo.advantages.procedural import ProceduralAdvantage
from appo.advantages.tree import SharedPrefixAdvantage, TreeAdvantage

__all__ = [
    "ADVANTAGES",
    "AdvantageEstimator",
    "EntropyAwareAdvantage",
    "GlobalBatchAdvantage",
    "GroupAdvantage",
    "LeaveOneOut",
    "ProceduralAdvantage",
    "SharedPrefixAdvantage",
    "TrajectoryAdvantage",
    "TreeAdvantage",
]

"""How rewards become advantages."""

from appo.advantages.anchor import AnchorStateAdvantage
from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.advantages.entropy_aware import EntropyAwareAdvantage
from appo.advantages.forks import NodeValueAdvantage, SegmentAdvantage, SiblingAdvantage
from appo.advantages.group import GlobalBatchAdvantage, GroupAdvantage, LeaveOneOut, TrajectoryAdvantage
from appo.advantages.information_gain import InformationGainAdvantage
from appo.advantages.procedural import DualGroupAdvantage, ProceduralAdvantage
from appo.advantages.tree import SharedPrefixAdvantage, TreeAdvantage

__all__ = [
    "ADVANTAGES",
    "AdvantageEstimator",
    "AnchorStateAdvantage",
    "DualGroupAdvantage",
    "EntropyAwareAdvantage",
    "GlobalBatchAdvantage",
    "GroupAdvantage",
    "InformationGainAdvantage",
    "LeaveOneOut",
    "NodeValueAdvantage",
    "ProceduralAdvantage",
    "SegmentAdvantage",
    "SharedPrefixAdvantage",
    "SiblingAdvantage",
    "TrajectoryAdvantage",
    "TreeAdvantage",
]

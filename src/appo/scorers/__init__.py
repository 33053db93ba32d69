"""Where to branch."""

from appo.core.context import BatchContext
from appo.scorers.base import SCORERS, Scorer, Scores
from appo.scorers.branching import BranchingScore, LikelihoodGain
from appo.scorers.entropy import Entropy
from appo.scorers.function import FunctionScorer, as_scorer
from appo.scorers.hindsight import HindsightDivergence
from appo.scorers.information_gain import InformationGain
from appo.scorers.oracle import Oracle
from appo.scorers.position import Position
from appo.scorers.random import NoBranching, RandomPosition, TreeUniform
from appo.scorers.surprisal import SegmentCut, Surprisal
from appo.scorers.tool_boundary import BalancedEntropy, ToolBoundary

__all__ = [
    "SCORERS",
    "BalancedEntropy",
    "BatchContext",
    "BranchingScore",
    "Entropy",
    "FunctionScorer",
    "HindsightDivergence",
    "InformationGain",
    "LikelihoodGain",
    "NoBranching",
    "Oracle",
    "Position",
    "RandomPosition",
    "Scorer",
    "Scores",
    "SegmentCut",
    "Surprisal",
    "ToolBoundary",
    "TreeUniform",
    "as_scorer",
]

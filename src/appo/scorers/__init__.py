"""Where to branch."""

from appo.scorers.base import SCORERS, Scorer, Scores
from appo.scorers.baselines import Entropy, NoBranching, RandomPosition
from appo.scorers.branching import BranchingScore, LikelihoodGain
from appo.scorers.turns import BalancedEntropy, ToolBoundary, TreeUniform

__all__ = [
    "SCORERS",
    "BalancedEntropy",
    "BranchingScore",
    "Entropy",
    "LikelihoodGain",
    "NoBranching",
    "RandomPosition",
    "Scorer",
    "Scores",
    "ToolBoundary",
    "TreeUniform",
]

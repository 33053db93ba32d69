"""Where to branch."""

from appo.scorers.base import SCORERS, Scorer, Scores, ScoringContext
from appo.scorers.branching import BranchingScore, LikelihoodGain
from appo.scorers.entropy import Entropy
from appo.scorers.function import FunctionScorer, as_scorer
from appo.scorers.random import NoBranching, RandomPosition, TreeUniform
from appo.scorers.tool_boundary import BalancedEntropy, ToolBoundary

__all__ = [
    "SCORERS",
    "BalancedEntropy",
    "BranchingScore",
    "Entropy",
    "FunctionScorer",
    "LikelihoodGain",
    "NoBranching",
    "RandomPosition",
    "Scorer",
    "Scores",
    "ScoringContext",
    "ToolBoundary",
    "TreeUniform",
    "as_scorer",
]

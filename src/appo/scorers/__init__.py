"""Where to branch."""

from appo.scorers.base import SCORERS, Scorer, Scores
from appo.scorers.baselines import Entropy, NoBranching, RandomPosition
from appo.scorers.branching import BranchingScore

__all__ = ["SCORERS", "BranchingScore", "Entropy", "NoBranching", "RandomPosition", "Scorer", "Scores"]

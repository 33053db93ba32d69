"""Forks: walks whose wrong turns can be mended at times, and where one of them has become a habit."""

from appo.environments.forks.demonstrations import ForkDemonstrations
from appo.environments.forks.influence import influence
from appo.environments.forks.problems import ForkProblems
from appo.environments.forks.world import ForkSearch, ForkWorld

__all__ = ["ForkDemonstrations", "ForkProblems", "ForkSearch", "ForkWorld", "influence"]

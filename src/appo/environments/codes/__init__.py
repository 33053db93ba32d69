"""Codes: walks on which nothing says what a sign stands for, so that each sign is to be learned by itself."""

from appo.environments.codes.demonstrations import CodeDemonstrations
from appo.environments.codes.influence import influence
from appo.environments.codes.problems import CodeProblems
from appo.environments.codes.world import CodeSearch, CodeWorld

__all__ = ["CodeDemonstrations", "CodeProblems", "CodeSearch", "CodeWorld", "influence"]

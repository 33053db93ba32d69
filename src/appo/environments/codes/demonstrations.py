"""Walks along signs, some of which are read wrongly."""

from __future__ import annotations

from dataclasses import dataclass, field

from appo.environments.codes.problems import CodeProblems
from appo.environments.gates.demonstrations import GateDemonstrations


@dataclass(frozen=True)
class CodeDemonstrations(GateDemonstrations):
    """Walks with real look-ups behind every turn; both ways of every sign are among them."""

    name = "code"

    problems: CodeProblems = field(default_factory=CodeProblems)
    """What is walked."""
    wrong_shares: dict[str, float] = field(default_factory=lambda: {"codes_3": 0.4})
    """Chance of a wrong turn at each sign, by family; no turn is wrong in one that is left out, which tells what its
    signs stand for."""

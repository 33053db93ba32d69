"""Walks along trails, some of which leave them, most often at one fork."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from appo.environments.forks.problems import ForkProblems
from appo.environments.gates.demonstrations import GateDemonstrations
from appo.environments.gates.problems import GateProblem


@dataclass(frozen=True)
class ForkDemonstrations(GateDemonstrations):
    """Walks with real look-ups behind every turn, some of which are wrong, and most of those at one fork.

    A policy that learned that fork is surer of itself there than at the others, and wrong.
    """

    name = "fork"

    problems: ForkProblems = field(default_factory=ForkProblems)
    """What is walked."""
    wrong_shares: dict[str, float] = field(default_factory=lambda: {"forks_3": 0.3})
    """Chance of a wrong turn at each fork but one, by family; no turn is wrong in one that is left out."""
    habit_fork: int = 2
    """Number of the fork that is mostly taken wrong, from 1 on, in the families of `wrong_shares`."""
    habit_share: float = 0.8
    """Chance of a wrong turn there: 0.50 nats, fewer than elsewhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.habit_fork < 1:
            raise ValueError(f"habit_fork must be at least 1, got {self.habit_fork}")
        if not 0.0 <= self.habit_share <= 1.0:
            raise ValueError(f"habit_share must lie in [0, 1], got {self.habit_share}")

    def turns_wrong(self, problem: GateProblem, gate: int, rng: random.Random) -> bool:
        if gate + 1 == self.habit_fork and problem.family in self.wrong_shares:
            return rng.random() < self.habit_share
        return super().turns_wrong(problem, gate, rng)

"""Questions that say where to start and how many signs to follow, at forks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.forks.world import ForkWorld
from appo.environments.gates.problems import GateProblems


@dataclass(frozen=True)
class ForkProblems(GateProblems):
    """Draws walks along trails; equal options, equal problems.

    At each fork a person's sign is looked up, which names two ways and then the one to take. The other one leads on
    like it, some to where the trail can be found again.
    """

    known_families: ClassVar[tuple[str, ...]] = tuple(f"forks_{number}" for number in range(1, 5))
    place: ClassVar[str] = "fork"

    families: dict[str, float] = field(default_factory=lambda: {"forks_3": 1.0})
    """Weight of each family: `forks_1` to `forks_4` by number of forks; one that is left out is not asked."""
    world: ForkWorld = field(default_factory=ForkWorld)
    """What trails go through."""

"""Questions that say where to start and how many signs to follow, and not what signs stand for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.codes.world import CodeWorld
from appo.environments.gates.problems import GateProblems


@dataclass(frozen=True)
class CodeProblems(GateProblems):
    """Draws walks along signs that name an animal; equal options, equal problems.

    Each animal stands for one way, everywhere and in every question, and a second way is taken for it by mistake. That
    one leads on like the right one, to a wrong end.
    """

    known_families: ClassVar[tuple[str, ...]] = tuple(f"codes_{number}" for number in range(1, 6))
    place: ClassVar[str] = "code"

    families: dict[str, float] = field(default_factory=lambda: {"codes_3": 1.0})
    """Weight of each family: `codes_1` to `codes_5` by number of signs; one that is left out is not asked."""
    world: CodeWorld = field(default_factory=CodeWorld)
    """What walks go through."""

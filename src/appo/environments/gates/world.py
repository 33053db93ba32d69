"""The knowledge base that walks go through."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from typing import ClassVar

from appo.environments.names import FIRST_NAMES, LAST_NAMES, MORE_FIRST_NAMES, MORE_LAST_NAMES
from appo.environments.search import WorldSearch
from appo.environments.world import Kind, Relation, World
from appo.tools.search.tool import SEARCH_BACKENDS

SIGN, HOME = "sign", "home"

TURNS = ("boss", "mentor", "friend", "rival", "partner", "sponsor")
"""Where a gate may lead; the sign of each person names two of them, the right one first."""

APPROACHES = ("teacher", "doctor", "neighbor")
"""Ways that are certain, to where the first gate is."""


@dataclass(frozen=True)
class GateWorld(World):
    """People with a sign, a home, and others that they lead to."""

    relations: ClassVar[tuple[Relation, ...]] = (
        Relation(SIGN, "person", "sign"),
        Relation(HOME, "person", "city"),
        *(Relation(name, "person", "person") for name in (*TURNS, *APPROACHES)),
    )

    first_names: ClassVar[tuple[str, ...]] = FIRST_NAMES + MORE_FIRST_NAMES
    last_names: ClassVar[tuple[str, ...]] = LAST_NAMES + MORE_LAST_NAMES

    num_people: int = 2000
    """People, at least 2."""
    num_countries: int = 1
    """Countries, at least 1; nothing is known of them."""

    @cached_property
    def entities(self) -> dict[Kind, tuple[str, ...]]:
        """Those that exist, by what they are; a sign names a right and a wrong way."""
        signs = tuple(f"{right}, not {wrong}" for right, wrong in permutations(TURNS, 2))
        return {**super().entities, "sign": signs}

    def ways(self, person: str) -> tuple[str, str]:
        """The right way and the wrong one, as a person's sign names them."""
        right, wrong = self.value(SIGN, person).split(", not ")
        return right, wrong

    def move(self, person: str, turn: str) -> str:
        """Whom a turn or an approach leads to.

        Raises:
            KeyError: if that is not known.
        """
        return self.value(turn, person)


@SEARCH_BACKENDS.register
@dataclass(frozen=True)
class GateSearch(WorldSearch):
    """Ranks the facts of the gates' world as `WorldSearch` does those of its own."""

    world: GateWorld = field(default_factory=GateWorld)
    """Where the facts come from."""

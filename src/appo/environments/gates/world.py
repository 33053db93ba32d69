"""The knowledge base that walks go through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from appo.environments.search import WorldSearch
from appo.environments.world import Relation, World
from appo.tools.search.tool import SEARCH_BACKENDS

BADGE, HOME = "badge", "home"

TURNS = ("boss", "mentor", "friend", "rival", "partner", "sponsor")
"""Where a gate may lead; a question names two of them."""

APPROACHES = ("teacher", "doctor", "neighbor")
"""Ways that are certain, to where the first gate is."""


@dataclass(frozen=True)
class GateWorld(World):
    """People with a badge, a home, and others that they lead to."""

    relations: ClassVar[tuple[Relation, ...]] = (
        Relation(BADGE, "person", "color"),
        Relation(HOME, "person", "city"),
        *(Relation(name, "person", "person") for name in (*TURNS, *APPROACHES)),
    )

    num_people: int = 400
    """People, at least 2."""
    num_countries: int = 1
    """Countries, at least 1; nothing is known of them."""

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

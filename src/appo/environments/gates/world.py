"""The knowledge base that walks go through."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from typing import ClassVar

from appo.environments.search import WorldSearch
from appo.environments.world import Kind, Relation, World
from appo.tools.search.tool import SEARCH_BACKENDS

SIGN = "sign"

ENDS = ("home", "birthplace", "school", "office")
"""Cities that a question may ask for."""

TURNS = ("boss", "mentor", "friend", "rival", "partner", "sponsor")
"""Where a gate may lead; the sign of each person names two of them."""

APPROACHES = ("teacher", "doctor", "neighbor")
"""Ways that are certain, to where the first gate is."""


@dataclass(frozen=True)
class GateWorld(World):
    """People with a sign, cities, and others that they lead to."""

    relations: ClassVar[tuple[Relation, ...]] = (
        Relation(SIGN, "person", "sign"),
        *(Relation(name, "person", "city") for name in ENDS),
        *(Relation(name, "person", "person") for name in (*TURNS, *APPROACHES)),
    )

    num_people: int = 520
    """People, at least 2."""
    num_countries: int = 1
    """Countries, at least 1; nothing is known of them."""

    @cached_property
    def entities(self) -> dict[Kind, tuple[str, ...]]:
        """Those that exist, by what they are; a sign names two ways."""
        return {**super().entities, "sign": tuple(f"{one} or {other}" for one, other in permutations(TURNS, 2))}

    def ways(self, person: str) -> tuple[str, str]:
        """The two ways that a person's sign names, in its order."""
        first, second = self.value(SIGN, person).split(" or ")
        return first, second

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

"""The knowledge base that walks go through."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from appo.environments.decisions import read_sign, signs
from appo.environments.search import WorldSearch
from appo.environments.world import Kind, PeopleWorld, Relation
from appo.tools.search.tool import SEARCH_BACKENDS

SIGN, HOME = "sign", "home"

TURNS = ("boss", "mentor", "friend", "rival", "partner", "sponsor")
"""Where a gate may lead; the sign of each person names two of them, the right one first."""

APPROACHES = ("teacher", "doctor", "neighbor")
"""Ways that are certain, to where the first gate is."""


@dataclass(frozen=True)
class GateWorld(PeopleWorld):
    """People with a sign, a home, and others that they lead to."""

    relations: ClassVar[tuple[Relation, ...]] = (
        Relation(SIGN, "person", "sign"),
        Relation(HOME, "person", "city"),
        *(Relation(name, "person", "person") for name in (*TURNS, *APPROACHES)),
    )

    @cached_property
    def entities(self) -> dict[Kind, tuple[str, ...]]:
        """Those that exist, by what they are; a sign names a right and a wrong way."""
        return {**super().entities, "sign": signs(TURNS)}

    def ways(self, person: str) -> tuple[str, str]:
        """The right way and the wrong one, as a person's sign names them."""
        return read_sign(self.value(SIGN, person))

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

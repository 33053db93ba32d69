"""What is known of houses, and what lies in them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from typing import ClassVar

from appo.environments.decisions import read_sign, signs
from appo.environments.search import WorldSearch
from appo.environments.world import Kind, PeopleWorld, Relation
from appo.tools.search.tool import SEARCH_BACKENDS

METAL, SHAPE = "metal", "shape"

PARTS = {METAL: ("copper", "silver", "iron", "brass"), SHAPE: ("round", "square", "oval", "flat")}
"""What a key may be made of and look like, by clue, in the order in which it is chosen."""

NUM_KEYS = prod(map(len, PARTS.values()))

ROOMS = ("cellar", "attic", "kitchen", "library", "tower", "garden")
"""Each may be entered again and again."""

DOOR = "door"
"""What a visit ends with."""


@dataclass(frozen=True)
class HouseWorld(PeopleWorld):
    """People and their houses: clues to the key, rooms with coins, and a door."""

    relations: ClassVar[tuple[Relation, ...]] = (
        Relation(METAL, "person", "metal"),
        Relation(SHAPE, "person", "shape"),
    )

    rooms: tuple[int, ...] = (2, 6)
    """Numbers of rooms to enter before the door; houses have each as often."""
    max_coins: int = 4
    """Most coins that a room holds; each number from 0 on is as likely."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rooms or min(self.rooms) < 1:
            raise ValueError(f"rooms must be numbers from 1 on, got {self.rooms}")
        if self.max_coins < 0:
            raise ValueError(f"max_coins must not be negative, got {self.max_coins}")
        if self.num_cities < NUM_KEYS:
            raise ValueError(
                f"num_cities must be at least {NUM_KEYS}, one behind a door for each key, got {self.num_cities}"
            )

    @cached_property
    def entities(self) -> dict[Kind, tuple[str, ...]]:
        """Those that exist, by what they are; a clue names what is right and what is wrong."""
        return {**super().entities, "metal": signs(PARTS[METAL]), "shape": signs(PARTS[SHAPE])}

    def ways(self, clue: str, person: str) -> tuple[str, str]:
        """What is right and what is wrong, as a clue to the key of a person's house names them.

        Raises:
            KeyError: if that is not known.
        """
        return read_sign(self.value(clue, person))

    def num_rooms(self, person: str) -> int:
        """How many rooms of a person's house are entered before the door."""
        return random.Random(f"rooms {self.seed} {person}").choice(self.rooms)

    def behind(self, person: str, metal: str, shape: str) -> str:
        """The city that the door of a person's house leads to, another one for each key.

        Raises:
            KeyError: if there is no such key.
        """
        cities = random.Random(f"door {self.seed} {person}").sample(self.entities["city"], NUM_KEYS)
        return dict(zip(product(*PARTS.values()), cities, strict=True))[metal, shape]

    def coins(self, person: str, calls: Iterable[str]) -> int:
        """What a room holds when it is entered; all that was done in the house decides, as dice would.

        Args:
            person: whose house it is.
            calls: what was asked of the house, the room last.
        """
        return random.Random(f"coins {self.seed} {person} {' '.join(calls)}").randint(0, self.max_coins)


@SEARCH_BACKENDS.register
@dataclass(frozen=True)
class HouseSearch(WorldSearch):
    """Ranks the clues of the houses' world as `WorldSearch` does the facts of its own."""

    world: HouseWorld = field(default_factory=HouseWorld)
    """Where the clues come from."""

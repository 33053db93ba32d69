"""What is known of houses, and what lies in them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations, product
from math import prod
from typing import ClassVar

from appo.environments.names import FIRST_NAMES, LAST_NAMES, MORE_FIRST_NAMES, MORE_LAST_NAMES
from appo.environments.search import WorldSearch
from appo.environments.world import Kind, Relation, World
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
class HouseWorld(World):
    """People and their houses: clues to the key, rooms with coins, and a door."""

    relations: ClassVar[tuple[Relation, ...]] = (
        Relation(METAL, "person", "metal"),
        Relation(SHAPE, "person", "shape"),
    )

    first_names: ClassVar[tuple[str, ...]] = FIRST_NAMES + MORE_FIRST_NAMES
    last_names: ClassVar[tuple[str, ...]] = LAST_NAMES + MORE_LAST_NAMES

    num_people: int = 2000
    """People, at least 2; each has a house."""
    num_countries: int = 1
    """Countries, at least 1; nothing is known of them."""
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
        return {**super().entities, "metal": _clues(PARTS[METAL]), "shape": _clues(PARTS[SHAPE])}

    def ways(self, clue: str, person: str) -> tuple[str, str]:
        """What is right and what is wrong, as a clue to the key of a person's house names them.

        Raises:
            KeyError: if that is not known.
        """
        right, wrong = self.value(clue, person).split(", not ")
        return right, wrong

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


def _clues(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{right}, not {wrong}" for right, wrong in permutations(words, 2))

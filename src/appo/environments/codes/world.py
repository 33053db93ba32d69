"""The knowledge base that signs in code stand in."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property

from appo.environments.gates.world import SIGN, TURNS, GateWorld
from appo.environments.names import ANIMALS
from appo.environments.search import WorldSearch
from appo.environments.world import Kind
from appo.tools.search.tool import SEARCH_BACKENDS


@dataclass(frozen=True)
class CodeWorld(GateWorld):
    """People with a sign that names an animal, which stands for one way; no fact says which."""

    num_codes: int = 24
    """Animals that signs name, at least 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.num_codes <= len(ANIMALS):
            raise ValueError(f"num_codes must lie in [2, {len(ANIMALS)}], got {self.num_codes}")

    @cached_property
    def entities(self) -> dict[Kind, tuple[str, ...]]:
        """Those that exist, by what they are; a sign is an animal."""
        return {**super().entities, "sign": ANIMALS[: self.num_codes]}

    @cached_property
    def code_book(self) -> dict[str, tuple[str, str]]:
        """The way that each animal stands for, and the one that is taken for it."""
        rng = random.Random(f"codes {self.seed}")
        book = {}
        for code in self.entities["sign"]:
            right, wrong = rng.sample(TURNS, 2)
            book[code] = right, wrong
        return book

    def ways(self, person: str) -> tuple[str, str]:
        return self.code_book[self.value(SIGN, person)]


@SEARCH_BACKENDS.register
@dataclass(frozen=True)
class CodeSearch(WorldSearch):
    """Ranks the facts of the codes' world as `WorldSearch` does those of its own."""

    world: CodeWorld = field(default_factory=CodeWorld)
    """Where the facts come from."""

"""The knowledge base that trails go through."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

from appo.environments.gates.world import SIGN, TURNS, GateWorld
from appo.environments.search import WorldSearch
from appo.environments.world import Kind
from appo.tools.search.tool import SEARCH_BACKENDS


@dataclass(frozen=True)
class ForkWorld(GateWorld):
    """People at forks: a sign names two ways in either order, then the one to take; the other strays, for good or not.

    Half of the people lie on trails; each has a *detour*, who leads on to whom that person leads to. Where a fork can
    be mended, the wrong way leads to the detour of whom the right way leads to, so that who then follows the sign is
    back on the trail; a wrong turn there is for good. Other wrong ways lead to anybody, for good.
    """

    mended_share: float = 0.4
    """Share of the forks of trails that can be mended."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_people < 4:
            raise ValueError(f"num_people must be at least 4, two with a detour each, got {self.num_people}")
        if not 0.0 <= self.mended_share <= 1.0:
            raise ValueError(f"mended_share must lie in [0, 1], got {self.mended_share}")

    @cached_property
    def entities(self) -> dict[Kind, tuple[str, ...]]:
        """Those that exist, by what they are; a sign names two ways in either order, then the right one."""
        pairs = permutations(TURNS, 2)
        signs = (f"{one} or {other}, take {right}" for one, other in pairs for right in (one, other))
        return {**super().entities, "sign": tuple(signs)}

    def ways(self, person: str) -> tuple[str, str]:
        return _read(self.value(SIGN, person))

    @cached_property
    def _values(self) -> dict[tuple[str, str], str]:
        values = dict(super()._values)
        rng = random.Random(f"trails {self.seed}")
        people = self.entities["person"]
        detours = dict(zip(people[::2], people[1::2], strict=False))
        on_trails = tuple(detours)
        for person, detour in detours.items():
            ahead = person
            while ahead == person:
                ahead = rng.choice(on_trails)
            right, wrong = _read(values[SIGN, person])
            values[right, person] = ahead
            values[_read(values[SIGN, detour])[0], detour] = ahead
            if rng.random() < self.mended_share:
                values[wrong, person] = detours[ahead]
        return values


def _read(sign: str) -> tuple[str, str]:
    """The way to take, and the other one."""
    named, right = sign.split(", take ")
    (wrong,) = set(named.split(" or ")) - {right}
    return right, wrong


@SEARCH_BACKENDS.register
@dataclass(frozen=True)
class ForkSearch(WorldSearch):
    """Ranks the facts of the forks' world as `WorldSearch` does those of its own."""

    world: ForkWorld = field(default_factory=ForkWorld)
    """Where the facts come from."""

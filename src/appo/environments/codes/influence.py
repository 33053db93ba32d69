"""What each turn at a sign is worth, by enumeration of all walks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from appo.core.trajectory import Trajectory
from appo.environments.codes.world import CodeWorld
from appo.environments.gates.influence import influence_of_turns

_world = lru_cache(maxsize=4)(CodeWorld)


def influence(
    trajectory: Trajectory,
    tokens: Sequence[str],
    *,
    right_turn: float = 0.6,
    seed: int = 0,
    num_people: int = 2000,
    num_cities: int = 20,
    num_codes: int = 24,
) -> list[float]:
    """The influence of every token on success, ``Var_a Q``: 0 but at signs, ``p (1 - p) (Q_right - Q_wrong)^2`` there.

    As `appo.environments.gates.influence` has it. For the `Oracle` scorer, and for studies that are held against what
    is exact.

    Args:
        trajectory: of a question of the codes.
        tokens: the text of each of its positions.
        right_turn: chance of the right turn at each later sign.
        seed: of the world.
        num_people: of the world.
        num_cities: of the world.
        num_codes: of the world.

    Raises:
        ValueError: if the question states no walk.
    """
    world = _world(seed=seed, num_people=num_people, num_cities=num_cities, num_codes=num_codes)
    return influence_of_turns(trajectory, tokens, world, right_turn)

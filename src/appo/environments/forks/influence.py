"""What each turn at a fork is worth, by enumeration of all walks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from appo.core.trajectory import Trajectory
from appo.environments.forks.world import ForkWorld
from appo.environments.gates.influence import influence_of_turns

_world = lru_cache(maxsize=4)(ForkWorld)


def influence(
    trajectory: Trajectory,
    tokens: Sequence[str],
    *,
    right_turns: Sequence[float] = (0.7, 0.2, 0.7, 0.7),
    seed: int = 0,
    num_people: int = 2000,
    num_cities: int = 20,
    mended_share: float = 0.4,
) -> list[float]:
    """The influence of every token on success, ``Var_a Q``: 0 but at forks, ``p (1 - p) (Q_right - Q_wrong)^2`` there.

    As `appo.environments.gates.influence` has it, with a chance for each fork. For the `Oracle` scorer, and for studies
    that are held against what is exact.

    Args:
        trajectory: of a question of the forks.
        tokens: the text of each of its positions.
        right_turns: chance of the right turn at each fork that lies behind a turn, by its number; a question may have
            fewer forks.
        seed: of the world.
        num_people: of the world.
        num_cities: of the world.
        mended_share: of the world.

    Raises:
        ValueError: if the question states no walk, or has more forks than there are chances.
    """
    world = _world(seed=seed, num_people=num_people, num_cities=num_cities, mended_share=mended_share)
    return influence_of_turns(trajectory, tokens, world, right_turns)

"""What each choice of a key is worth, by enumeration of all keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product

from appo.core.trajectory import Trajectory
from appo.environments.decisions import influence_of_stakes
from appo.environments.houses.problems import person_of
from appo.environments.houses.records import find_choices
from appo.environments.houses.world import METAL, PARTS, SHAPE, HouseWorld

_world = lru_cache(maxsize=4)(HouseWorld)


def success(person: str, world: HouseWorld, right_choice: float, chosen: Mapping[str, bool] | None = None) -> float:
    """The chance to end at the answer, summed over all keys that can still be made.

    Args:
        person: whose house it is.
        world: that it is in.
        right_choice: chance of the right choice of each part of the key; 0.5 gives the chance level.
        chosen: whether parts that are chosen are right, by clue.
    """
    chosen = chosen or {}
    answer = world.behind(person, *(world.ways(clue, person)[0] for clue in (METAL, SHAPE)))
    total = 0.0
    for rights in product((True, False), repeat=len(PARTS)):
        key = dict(zip(PARTS, rights, strict=True))
        if any(key[clue] != is_right for clue, is_right in chosen.items()):
            continue
        chances = (right_choice if key[clue] else 1.0 - right_choice for clue in PARTS if clue not in chosen)
        metal, shape = (world.ways(clue, person)[not key[clue]] for clue in (METAL, SHAPE))
        total += math.prod(chances) * (world.behind(person, metal, shape) == answer)
    return total


def influence(
    trajectory: Trajectory,
    tokens: Sequence[str],
    *,
    right_choice: float = 0.6,
    seed: int = 0,
    num_people: int = 2000,
    num_cities: int = 20,
    rooms: tuple[int, ...] = (2, 6),
) -> list[float]:
    """The influence of every token on the reward, ``Var_a Q``: ``p (1 - p) (Q_right - Q_wrong)^2`` at choices of a key.

    `p` is the chance that the policy gave to what is right where it was sampled; a part that is chosen later is right
    with the chance `right_choice`. Coins are chance whichever room is entered: they have no influence.

    For the `Oracle` scorer, and for studies that are held against what is exact.

    Args:
        trajectory: of a question of the houses.
        tokens: the text of each of its positions.
        right_choice: chance of the right choice of a part that is chosen later.
        seed: of the world.
        num_people: of the world.
        num_cities: of the world.
        rooms: of the world.

    Raises:
        ValueError: if the question is none of the houses.
    """
    world = _world(seed=seed, num_people=num_people, num_cities=num_cities, rooms=tuple(rooms))
    person = person_of(trajectory.prompt.question)
    stakes: list[tuple[int, float]] = []
    chosen: dict[str, bool] = {}
    for choice in find_choices(trajectory.prompt.question, tokens, trajectory.response_mask.tolist(), world):
        right, wrong = (
            success(person, world, right_choice, {**chosen, choice.clue: is_right}) for is_right in (True, False)
        )
        stakes.append((choice.position, right - wrong))
        chosen[choice.clue] = choice.leads_right
    return influence_of_stakes(trajectory, stakes)

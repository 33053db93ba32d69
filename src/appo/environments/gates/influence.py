"""What each turn is worth, by enumeration of all walks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

from appo.core.trajectory import Trajectory
from appo.environments.decisions import influence_of_stakes
from appo.environments.gates.problems import Route
from appo.environments.gates.turns import Turn, find_turns
from appo.environments.gates.world import HOME, GateWorld

_world = lru_cache(maxsize=4)(GateWorld)


def success(
    route: Route,
    world: GateWorld,
    right_turn: float | Sequence[float],
    *,
    restart: float = 0.0,
    person: str | None = None,
    gate: int = 0,
    strayed: bool = False,
    restarted: bool = False,
) -> float:
    """The chance to end at the answer, summed over all walks that are left.

    Args:
        route: of the question.
        world: that it is about.
        right_turn: chance of the right turn, at every gate or at each; 0.5 gives the chance level.
        restart: chance that a walk with a wrong turn begins again, once.
        person: who stands at the gate; None is the first one.
        gate: how many gates lie behind.
        strayed: whether one of their turns was wrong.
        restarted: whether the walk has begun again.

    Raises:
        ValueError: if there are fewer chances than gates.
    """
    first = route.first_person(world)
    answer = _answer(route, world, first)
    chances = right_turn if isinstance(right_turn, Sequence) else [right_turn] * route.num_gates
    if len(chances) < route.num_gates:
        raise ValueError(f"right_turn must be a chance for each of {route.num_gates} gates, got {len(chances)}")

    @cache
    def value(person: str, gate: int, strayed: bool, restarted: bool) -> float:
        if gate == route.num_gates:
            ends = float(world.value(HOME, person) == answer)
            if not strayed or restarted or restart == 0.0:
                return ends
            return restart * value(first, 0, False, True) + (1.0 - restart) * ends
        right = value(world.move(person, world.ways(person)[0]), gate + 1, strayed, restarted)
        wrong = value(world.move(person, world.ways(person)[1]), gate + 1, True, restarted)
        return chances[gate] * right + (1.0 - chances[gate]) * wrong

    return value(person or first, gate, strayed, restarted)


def influence(
    trajectory: Trajectory,
    tokens: Sequence[str],
    *,
    right_turn: float = 0.7,
    restart: float = 0.0,
    seed: int = 0,
    num_people: int = 2000,
    num_cities: int = 20,
) -> list[float]:
    """The influence of every token on success, ``Var_a Q``: 0 but at turns, ``p (1 - p) (Q_right - Q_wrong)^2`` there.

    `p` is the chance of the right turn that the policy gave it where it was sampled; behind it turns are right with the
    chance `right_turn`. For the `Oracle` scorer, and for studies that are held against what is exact.

    Args:
        trajectory: of a question of the gates.
        tokens: the text of each of its positions.
        right_turn: chance of the right turn at each later gate.
        restart: chance that a walk with a wrong turn begins again, once.
        seed: of the world.
        num_people: of the world.
        num_cities: of the world.

    Raises:
        ValueError: if the question is none of the gates.
    """
    world = _world(seed=seed, num_people=num_people, num_cities=num_cities)
    return influence_of_turns(trajectory, tokens, world, right_turn, restart)


def influence_of_turns(
    trajectory: Trajectory,
    tokens: Sequence[str],
    world: GateWorld,
    right_turn: float | Sequence[float],
    restart: float = 0.0,
) -> list[float]:
    """The influence of every token of a walk, as `influence` has it; `success` has the arguments."""
    route = Route.parse(trajectory.prompt.question)
    turns = find_turns(trajectory.prompt.question, tokens, trajectory.response_mask.tolist(), world)
    stakes = ((turn.position, _stake(route, world, turn, right_turn, restart)) for turn in turns)
    return influence_of_stakes(trajectory, stakes)


def _stake(route: Route, world: GateWorld, turn: Turn, right_turn: float | Sequence[float], restart: float) -> float:
    """What the right turn gains over the wrong one."""
    right, wrong = (
        success(
            route,
            world,
            right_turn,
            restart=restart,
            person=world.move(turn.person, way),
            gate=turn.gate + 1,
            strayed=strayed,
            restarted=turn.restarted,
        )
        for way, strayed in zip(world.ways(turn.person), (turn.strayed, True), strict=True)
    )
    return right - wrong


def _answer(route: Route, world: GateWorld, person: str) -> str:
    for _ in range(route.num_gates):
        person = world.move(person, world.ways(person)[0])
    return world.value(HOME, person)

"""What environments whose decisions have two ways say of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import permutations

from appo.core.trajectory import Trajectory


def signs(words: Iterable[str]) -> tuple[str, ...]:
    """Every text that names one of some words as right and another one as wrong."""
    return tuple(f"{right}, not {wrong}" for right, wrong in permutations(words, 2))


def read_sign(text: str) -> tuple[str, str]:
    """What a sign names as right, and what as wrong."""
    right, wrong = text.split(", not ")
    return right, wrong


def influence_of_stakes(trajectory: Trajectory, stakes: Iterable[tuple[int, float]]) -> list[float]:
    """``Var_a Q`` of every token: ``p (1 - p) (Q_right - Q_wrong)^2`` where the policy decides, 0 elsewhere.

    `p` is the chance that the policy gave to the way it took: of two ways it does not matter which one, and further
    ones are taken for impossible.

    Args:
        trajectory: that was sampled.
        stakes: of each decision the position of its token, and what the right way gains over the wrong one.
    """
    values = [0.0] * len(trajectory)
    for position, stake in stakes:
        sampled = math.exp(float(trajectory.behavior_log_probs[position]))
        values[position] = sampled * (1.0 - sampled) * stake**2
    return values

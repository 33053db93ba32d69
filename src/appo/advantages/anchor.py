"""Advantages of steps that began in the same state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from appo.advantages.base import ADVANTAGES, AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.context import BatchContext
from appo.core.functions import as_function
from appo.functional import Std, group_standardize, turn_numbers


@ADVANTAGES.register
@dataclass(frozen=True)
class AnchorStateAdvantage(AdvantageEstimator):
    """Compares trajectories of a prompt, and steps of them that began in the same state.

    ``A = (R - mean of the prompt) + weight * (G - mean of G over the steps with the same state)``, where a step is a
    turn, its state the tool result that it answers, token for token, or the prompt, and ``G = discount**k R`` its
    return, with `k` steps behind it. A step whose state nobody else was in counts 0 in the second part. An environment
    whose rooms look different when they come again names its states by `state_key`.

    See "Group-in-Group Policy Optimization" (https://arxiv.org/abs/2505.10978).
    """

    weight: float = 1.0
    """Of the comparison of steps."""
    discount: float = 0.95
    """What each later step takes off the return, in [0, 1]."""
    std: Std = "none"
    """What deviations are divided by, of trajectories and of steps alike: `population` or `sample` standard deviation,
    or `none`."""

    state_key: str | Callable[..., Any] | None = None
    """Import path ``package.module:name`` of a function that takes a trajectory and returns the state in which each of
    its turns began, hashable; in Python, the function itself will do. `null`: what a turn answers, token for token."""

    def __post_init__(self) -> None:
        if not self.weight >= 0.0:
            raise ValueError(f"weight must not be negative, got {self.weight}")
        if not 0.0 <= self.discount <= 1.0:
            raise ValueError(f"discount must lie in [0, 1], got {self.discount}")

    def __call__(self, batch: TrajectoryBatch, context: BatchContext) -> Tensor:
        turns = turn_numbers(batch.response_mask)
        number_of = turns.amax(-1) + 1
        rows, steps, states = [], [], []
        names: dict[object, int] = defaultdict(lambda: len(names))
        for of_row, number, state in self._states(batch, context, turns):
            rows.append(of_row)
            steps.append(number)
            states.append(names[int(batch.group[of_row]), state])
        row, step, state_of = (torch.tensor(each, device=turns.device) for each in (rows, steps, states))
        returns = batch.rewards[row] * self.discount ** (number_of[row] - 1 - step).to(batch.rewards.dtype)
        of_steps = batch.rewards.new_zeros(len(batch), int(number_of.max()))
        of_steps[row, step] = group_standardize(returns, state_of, std=self.std)
        of_rows = group_standardize(batch.rewards, batch.group, std=self.std).unsqueeze(-1)
        return (of_rows + self.weight * of_steps.gather(-1, turns.clamp(min=0))).where(batch.response_mask, 0.0)

    def _states(
        self, batch: TrajectoryBatch, context: BatchContext, turns: Tensor
    ) -> Iterator[tuple[int, int, Hashable]]:
        """Row, number and state of each step."""
        if self.state_key is None:
            yield from _observations(batch, turns)
            return
        function = as_function(self.state_key)
        for row, trajectory in enumerate(context.records()):
            states, number = list(function(trajectory)), int(turns[row].max()) + 1
            if len(states) != number:
                raise ValueError(
                    f"state_key must return a state for each of the {number} turns of a trajectory of prompt "
                    f"{trajectory.prompt.id}, got {len(states)}"
                )
            yield from ((row, turn, state) for turn, state in enumerate(states))


def _observations(batch: TrajectoryBatch, turns: Tensor) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Row, number and state of each step: the tokens between it and the step before."""
    token_ids, prompt_lengths = batch.token_ids.tolist(), batch.prompt_lengths.tolist()
    for row, of_row in enumerate(turns.tolist()):
        observed: list[int] = []
        last = -1
        for position in range(prompt_lengths[row], int(batch.lengths[row])):
            turn = of_row[position]
            if turn < 0:
                observed.append(token_ids[row][position])
            elif turn != last:
                yield row, turn, tuple(observed)
                observed, last = [], turn

"""What a data module makes of its options and its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from appo.core.trajectory import Trajectory
from appo.distributed import comm
from appo.distributed.balancing import balance_groups, expected_tokens
from appo.prompts import PromptStore
from appo.rollouts import RolloutBuffer


def loader(buffer: RolloutBuffer[Any]) -> DataLoader[Any]:
    """Hands out what a buffer holds, one mini-batch a step."""
    return DataLoader(buffer, batch_size=None)


def num_minibatches(prompts_per_iteration: int, prompts_per_minibatch: int) -> int:
    """Mini-batches of an iteration.

    Raises:
        ValueError: if they would not be equal.
    """
    if prompts_per_iteration % prompts_per_minibatch:
        raise ValueError(
            f"data.prompts_per_minibatch must divide data.prompts_per_iteration = {prompts_per_iteration}, "
            f"got {prompts_per_minibatch}"
        )
    return prompts_per_iteration // prompts_per_minibatch


def check_positive(**options: int | None) -> None:
    """Refuses the first of some options of `data` that is below 1; None is no number and passes.

    Raises:
        ValueError: if there is one.
    """
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"data.{name} must be positive, got {value}")


def own_share(minibatch: Sequence[int], prompts: PromptStore, response_tokens: Mapping[str, float]) -> Sequence[int]:
    """Of the prompts of a mini-batch, by their numbers, those of this process.

    Args:
        minibatch: numbers of prompts.
        prompts: all of the training.
        response_tokens: of prompts that were sampled before, by id.
    """
    if len(minibatch) % comm.num_ranks():
        return comm.shard(minibatch)
    shares = balance_groups(
        expected_tokens([prompts[number] for number in minibatch], response_tokens), comm.num_ranks()
    )
    return [minibatch[i] for i in shares[comm.rank()]]


def with_columns(trajectories: Sequence[Trajectory], prompts: PromptStore) -> list[Trajectory]:
    """Trajectories of which each has the columns of the row that its prompt came from.

    Args:
        trajectories: of some of the prompts.
        prompts: all of them.
    """
    numbers = {id_: number for number, id_ in enumerate(prompts.ids)} if trajectories else {}
    return [replace(t, prompt=replace(t.prompt, columns=prompts[numbers[t.prompt.id]].columns)) for t in trajectories]

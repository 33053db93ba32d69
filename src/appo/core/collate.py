"""From trajectories, or from tensors, to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from appo.core.batch import NO_PARENT, NOT_EVALUATED, TrajectoryBatch, check_values
from appo.core.trajectory import NOT_SAMPLED, Trajectory


def collate(
    trajectories: Sequence[Trajectory],
    rewards: Sequence[float] | None = None,
    evaluated: TrajectoryBatch | None = None,
) -> TrajectoryBatch:
    """Pads trajectories into one batch, in their order.

    Args:
        trajectories: at least one, each with a sampled token; parents before their branches.
        rewards: one a trajectory; None leaves NaN.
        evaluated: of the first ones of `trajectories`: their old log-probs and entropies are taken over.

    Raises:
        ValueError: if there are no trajectories, one has no sampled token or is a branch without its parent before it,
            behavior log-probs do not align with the tokens or are none that a log-prob can have, or a reward is not
            finite.
    """
    if not trajectories:
        raise ValueError("trajectories must not be empty, got none")
    rows = {id(trajectory): row for row, trajectory in enumerate(trajectories)}
    groups: dict[str, int] = {}
    group, parent, position, score = [], [], [], []
    for row, trajectory in enumerate(trajectories):
        if not trajectory.response_mask.any():
            raise ValueError(
                f"trajectory of prompt {trajectory.prompt.id} in row {row} must have a sampled token, got none"
            )
        group.append(groups.setdefault(trajectory.prompt.id, len(groups)))
        origin = trajectory.origin
        parent_row = NO_PARENT if origin is None else rows.get(id(origin.trajectory), row)
        if parent_row >= row:
            raise ValueError(f"branch in row {row} of prompt {trajectory.prompt.id} must come after its parent")
        parent.append(parent_row)
        position.append(NO_PARENT if origin is None else origin.position)
        score.append(0.0 if origin is None else origin.score)
    response_mask = _pad([trajectory.response_mask for trajectory in trajectories])
    behavior_log_probs = _pad([trajectory.behavior_log_probs for trajectory in trajectories])
    check_values("behavior_log_probs", behavior_log_probs, response_mask, trajectories)
    batch = TrajectoryBatch(
        token_ids=_pad([trajectory.token_ids for trajectory in trajectories]),
        lengths=torch.tensor([len(trajectory) for trajectory in trajectories]),
        prompt_lengths=torch.tensor([trajectory.prompt_length for trajectory in trajectories]),
        response_mask=response_mask,
        policy_versions=_pad([trajectory.policy_versions for trajectory in trajectories], NOT_SAMPLED),
        behavior_log_probs=behavior_log_probs,
        old_log_probs=torch.zeros(response_mask.shape),
        entropies=torch.zeros(response_mask.shape),
        evaluated_by=torch.full((len(trajectories),), NOT_EVALUATED),
        rewards=_check_rewards(rewards, trajectories),
        group=torch.tensor(group),
        parent=torch.tensor(parent),
        branch_position=torch.tensor(position),
        branch_score=torch.tensor(score),
        sampling_log_probs=_sampling_log_probs(trajectories, behavior_log_probs, parent),
    )
    if evaluated is not None:
        batch.take_evaluation_(torch.arange(len(evaluated)), evaluated)
    return batch


def _pad(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _sampling_log_probs(
    trajectories: Sequence[Trajectory], behavior_log_probs: Tensor, parents: Sequence[int]
) -> Tensor | None:
    """``[B, T]``, those of the engine on tokens whose policy the trainer was not asked for; None if on all.

    What a branch shares with its parent was sampled for that, and has its values.
    """
    if all(trajectory.sampling_log_probs is None for trajectory in trajectories):
        return None
    columns = behavior_log_probs.clone()
    for row, (trajectory, parent) in enumerate(zip(trajectories, parents, strict=True)):
        if trajectory.sampling_log_probs is not None:
            columns[row, : len(trajectory)] = trajectory.sampling_log_probs
        else:
            columns[row, : trajectory.num_shared] = columns[parent, : trajectory.num_shared]
    return columns


def _check_rewards(rewards: Sequence[float] | None, trajectories: Sequence[Trajectory]) -> Tensor:
    if rewards is None:
        return torch.full((len(trajectories),), float("nan"))
    if len(rewards) != len(trajectories):
        raise ValueError(
            f"rewards must have one value for each of {len(trajectories)} trajectories, got {len(rewards)}"
        )
    tensor = torch.tensor(rewards, dtype=torch.float32)
    if not tensor.isfinite().all():
        row = int((~tensor.isfinite()).nonzero()[0])
        raise ValueError(
            f"rewards must be finite, got {rewards[row]} for prompt {trajectories[row].prompt.id} in row {row}"
        )
    return tensor


def make_batch(token_ids: Tensor, lengths: Tensor, response_mask: Tensor, **columns: Any) -> TrajectoryBatch:
    """A batch from tensors, for losses, scorers and advantages outside a run: roots of one prompt.

    Args:
        token_ids: ``[B, T]`` int64.
        lengths: ``[B]`` int64, tokens before the padding.
        response_mask: ``[B, T]`` bool, True on tokens the policy sampled.
        **columns: further fields of `TrajectoryBatch`; those that are left out are 0, or say that there is no parent
            and no evaluation. Old log-probs that are given count as evaluated by version 0, which has sampled, too.
    """
    num_rows = len(token_ids)
    no_parent = torch.full((num_rows,), NO_PARENT)
    evaluated_by = 0 if "old_log_probs" in columns else NOT_EVALUATED
    defaults = {
        "prompt_lengths": response_mask.int().argmax(-1),
        "policy_versions": torch.where(response_mask, 0, NOT_SAMPLED),
        **{name: torch.zeros(token_ids.shape) for name in ("behavior_log_probs", "old_log_probs", "entropies")},
        "evaluated_by": torch.full((num_rows,), evaluated_by),
        "rewards": torch.zeros(num_rows),
        "group": torch.zeros(num_rows, dtype=torch.int64),
        "parent": no_parent,
        "branch_position": no_parent,
        "branch_score": torch.zeros(num_rows),
    }
    return TrajectoryBatch(token_ids=token_ids, lengths=lengths, response_mask=response_mask, **defaults | columns)

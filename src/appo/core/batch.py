"""The tensors of an iteration: built once, never reordered afterwards.

Shapes: `B` trajectories, `T` tokens of the padded sequence. Rows are prompt, response,
padding; log-probs, entropies and advantages stand at the position of their token, so no reader shifts anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from appo.core.trajectory import Trajectory

NO_PARENT = -1
"""The parent row, and the branch position, of an initial trajectory."""

_ROUNDING = 1e-4
"""How far above 0 a log-prob, or below 0 an entropy, may come out by rounding."""


@dataclass(frozen=True, eq=False)
class TrajectoryBatch:
    """Trajectories of an iteration, branches after the initial trajectories they left.

    Attributes:
        token_ids: ``[B, T]`` int64, 0 on padding.
        lengths: ``[B]`` int64, tokens before the padding.
        response_mask: ``[B, T]`` bool, True on tokens the policy sampled; False on prompt, tool output, padding.
        behavior_log_probs: ``[B, T]`` under the policy that sampled; 0 elsewhere.
        old_log_probs: ``[B, T]`` under the policy that begins the update; 0 elsewhere, and on rows not measured.
        entropies: ``[B, T]`` nats, exact, of the next-token distribution of that same policy; 0 elsewhere.
        rewards: ``[B]``; NaN until the trajectory has been rewarded.
        group: ``[B]`` int64, rows with the same value answer the same prompt.
        parent: ``[B]`` int64, row a branch left; `NO_PARENT` for an initial trajectory.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; `NO_PARENT` for an initial one.
        branch_score: ``[B]`` score of the branch point; 0 for an initial trajectory.
    """

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    behavior_log_probs: Tensor
    old_log_probs: Tensor
    entropies: Tensor
    rewards: Tensor
    group: Tensor
    parent: Tensor
    branch_position: Tensor
    branch_score: Tensor

    def __post_init__(self) -> None:
        _check_shapes(self, self.token_ids.shape)

    @property
    def is_branch(self) -> Tensor:
        """``[B]`` bool, True on branches."""
        return self.parent != NO_PARENT


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """The rows of one optimizer step, or of one micro-batch of it.

    Attributes:
        token_ids: ``[B, T]`` int64, 0 on padding.
        lengths: ``[B]`` int64, tokens before the padding.
        response_mask: ``[B, T]`` bool, True on tokens that are trained.
        behavior_log_probs: ``[B, T]`` under the policy that sampled; 0 elsewhere.
        old_log_probs: ``[B, T]`` under the policy that begins the update; 0 elsewhere. None if that is the policy that
            is about to be trained: its own log-probs stand for them.
        advantages: ``[B, T]``; 0 elsewhere.
        ref_log_probs: ``[B, T]`` under the frozen reference; None without one.
        num_tokens: trained tokens of the whole optimizer step, over micro-batches and ranks; None means of this batch.
        num_rows: rows of the whole optimizer step, likewise.
    """

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    behavior_log_probs: Tensor
    old_log_probs: Tensor | None
    advantages: Tensor
    ref_log_probs: Tensor | None = None
    num_tokens: int | None = None
    num_rows: int | None = None

    def __post_init__(self) -> None:
        _check_shapes(self, self.token_ids.shape)

    def __len__(self) -> int:
        return len(self.token_ids)

    def select(self, rows: Tensor) -> TrainBatch:
        """The given rows, cut to the longest of them; `num_tokens` and `num_rows` stay those of the step.

        Args:
            rows: ``[B']`` int64 row numbers.

        Raises:
            ValueError: if there are no rows.
        """
        if not len(rows):
            raise ValueError("rows must name at least one row, got none")
        width = int(self.lengths[rows].max())
        cut: dict[str, Any] = {
            f.name: value[rows, :width] if value.ndim == 2 else value[rows]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **cut)

    @staticmethod
    def cat(batches: Sequence[TrainBatch]) -> TrainBatch:
        """All rows of some batches, padded to the longest; `num_tokens` and `num_rows` are those of the result.

        Args:
            batches: at least one; all with `ref_log_probs`, or none. The result has `old_log_probs` if all have.
        """
        if len(batches) == 1:
            return replace(batches[0], num_tokens=None, num_rows=None)
        width = max(batch.token_ids.shape[1] for batch in batches)
        joined: dict[str, Any] = {"old_log_probs": None}
        for f in fields(TrainBatch):
            values = [getattr(batch, f.name) for batch in batches]
            if all(isinstance(value, Tensor) for value in values):
                padded = [F.pad(v, (0, width - v.shape[1])) if v.ndim == 2 else v for v in values]
                joined[f.name] = torch.cat(padded)
        return TrainBatch(**joined)

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def micro_batches(self, max_tokens: int) -> list[tuple[Tensor, TrainBatch]]:
        """Cuts the step into batches of at most `max_tokens` tokens, rows of similar length together.

        Rows without a trained token are left out; `num_rows` counts them.

        Args:
            max_tokens: of one micro-batch, padding not included; a longer row forms a micro-batch of its own.

        Returns:
            Row numbers, ``[B_i]`` int64 each, and their rows.
        """
        whole = replace(
            self, num_tokens=self.num_tokens or int(self.response_mask.sum()), num_rows=self.num_rows or len(self)
        )
        trained = self.response_mask.any(-1).nonzero()[:, 0]
        buckets = [trained[rows] for rows in length_buckets(self.lengths[trained], max_tokens)]
        return [(rows, whole.select(rows)) for rows in buckets]


def length_buckets(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Partitions rows, longest first, such that their tokens stay within a budget.

    Args:
        lengths: ``[B]`` int64 tokens of each row.
        max_tokens: of one bucket; a longer row gets a bucket of its own.

    Returns:
        Row numbers, ``[B_i]`` int64 each; together every row once.

    Raises:
        ValueError: if `max_tokens` is not positive.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be positive, got {max_tokens}")
    order = lengths.argsort(descending=True, stable=True)
    buckets: list[list[int]] = []
    room = 0
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if not buckets or length > room:
            buckets.append([])
            room = max_tokens
        buckets[-1].append(row)
        room -= length
    return [torch.tensor(rows, device=lengths.device) for rows in buckets]


def collate(
    trajectories: Sequence[Trajectory],
    *,
    old_log_probs: Sequence[Tensor] | None = None,
    entropies: Sequence[Tensor] | None = None,
    rewards: Sequence[float] | None = None,
) -> TrajectoryBatch:
    """Pads trajectories into one batch, in their order.

    Args:
        trajectories: at least one, each with a sampled token; parents before their branches.
        old_log_probs: ``[T_i]`` a trajectory, for the first ones or all; the rest holds 0.
        entropies: likewise.
        rewards: one a trajectory; None leaves NaN.

    Raises:
        ValueError: if there are no trajectories, one has no sampled token or is a branch without its parent before it,
            values do not align with the tokens of their trajectory, or are none that a log-prob or an entropy can
            have, or a reward is not finite.
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
    behavior_log_probs = [trajectory.behavior_log_probs for trajectory in trajectories]
    return TrajectoryBatch(
        token_ids=_pad([trajectory.token_ids for trajectory in trajectories]),
        lengths=torch.tensor([len(trajectory) for trajectory in trajectories]),
        response_mask=response_mask,
        behavior_log_probs=_pad_values("behavior_log_probs", behavior_log_probs, trajectories, response_mask),
        old_log_probs=_pad_values("old_log_probs", old_log_probs or (), trajectories, response_mask),
        entropies=_pad_values("entropies", entropies or (), trajectories, response_mask),
        rewards=_check_rewards(rewards, trajectories),
        group=torch.tensor(group),
        parent=torch.tensor(parent),
        branch_position=torch.tensor(position),
        branch_score=torch.tensor(score),
    )


def _pad(rows: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True)


def _pad_values(name: str, values: Sequence[Tensor], trajectories: Sequence[Trajectory], is_sampled: Tensor) -> Tensor:
    if len(values) > len(trajectories):
        raise ValueError(
            f"{name} must have a row for at most each of {len(trajectories)} trajectories, got {len(values)}"
        )
    padded = torch.zeros(is_sampled.shape)
    for row, (value, trajectory) in enumerate(zip(values, trajectories[: len(values)], strict=True)):
        if value.shape != trajectory.token_ids.shape:
            where = f"{name} of prompt {trajectory.prompt.id} in row {row}"
            raise ValueError(f"{where} must have shape {[len(trajectory)]}, got {list(value.shape)}")
        padded[row, : len(value)] = value
    sign = -1.0 if name == "entropies" else 1.0
    for rule, is_bad in (
        ("be finite", is_sampled & ~padded.isfinite()),
        # Values that slipped against their tokens show on tokens that nobody sampled.
        ("be 0 on tokens that were not sampled", ~is_sampled & (padded != 0.0)),
        ("not be positive" if sign > 0.0 else "not be negative", sign * padded > _ROUNDING),
    ):
        if is_bad.any():
            row, position = is_bad.nonzero()[0].tolist()
            where = f"{name} of prompt {trajectories[row].prompt.id} in row {row}"
            raise ValueError(f"{where} must {rule}, got {padded[row, position].item()} at position {position}")
    return padded


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


def _check_shapes(batch: TrajectoryBatch | TrainBatch, shape: torch.Size) -> None:
    per_row = {"lengths", "rewards", "group", "parent", "branch_position", "branch_score"}
    for f in fields(batch):
        value = getattr(batch, f.name)
        expected = shape[:1] if f.name in per_row else shape
        if isinstance(value, Tensor) and value.shape != expected:
            raise ValueError(f"{f.name} must have shape {list(expected)}, got {list(value.shape)}")

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

from appo.core.buckets import length_buckets
from appo.core.prefix_tree import PrefixTree
from appo.core.trajectory import NOT_SAMPLED, Trajectory
from appo.functional import token_owners

NO_PARENT = -1
"""The parent row, and the branch position, of a root."""

PARENT_ELSEWHERE = -2
"""The parent row of a branch whose parent is in another batch."""

NOT_EVALUATED = -1
"""The version of the policy that has evaluated a row which none has evaluated."""

_ROUNDING = 1e-4
"""How far above 0 a log-prob, or below 0 an entropy, may come out by rounding."""

_PER_ROW = frozenset(
    (
        "lengths",
        "prompt_lengths",
        "evaluated_by",
        "rewards",
        "group",
        "parent",
        "branch_position",
        "branch_score",
        "row",
    )
)


@dataclass(frozen=True, eq=False)
class TrajectoryBatch:
    """Rows of trajectories: those of an iteration, branches after their parents; or some of them, to be trained.

    Attributes:
        token_ids: ``[B, T]`` int64, 0 on padding.
        lengths: ``[B]`` int64, tokens before the padding.
        prompt_lengths: ``[B]`` int64, tokens before the response.
        response_mask: ``[B, T]`` bool, True on tokens the policy sampled; False on prompt, tool output, padding.
        policy_versions: ``[B, T]`` int64, version of the policy that sampled; `NOT_SAMPLED` elsewhere.
        behavior_log_probs: ``[B, T]`` under the policy that sampled; 0 elsewhere.
        old_log_probs: ``[B, T]`` under the policy that `evaluated_by` tells; 0 elsewhere, and on rows not evaluated.
        entropies: ``[B, T]`` nats, exact, of the next-token distribution of that same policy; 0 elsewhere.
        evaluated_by: ``[B]`` int64, version of the policy that has evaluated the row; `NOT_EVALUATED` if none has.
        rewards: ``[B]``; NaN until the trajectory has been rewarded.
        group: ``[B]`` int64, rows with the same value answer the same prompt.
        parent: ``[B]`` int64, row a branch left; `NO_PARENT` for a root.
        branch_position: ``[B]`` int64, last position a branch shares with its parent; `NO_PARENT` for a root.
        branch_score: ``[B]`` score of the branch point; 0 for a root.
        sampling_log_probs: ``[B, T]`` of the sampled tokens under the trainer's copy of the policy that sampled them; 0
            elsewhere. None where they were not taken: `behavior_log_probs`, the engine's, stand in.
        advantages: ``[B, T]``; 0 where nothing is trained. None until there is credit.
        train_mask: ``[B, T]`` bool, sampled tokens that are trained; None trains all of them.
        ref_log_probs: ``[B, T]`` under the frozen reference; 0 elsewhere. None without one.
        row: ``[B]`` int64, the number of the trajectory among those that its process collects in an iteration, by which
            a step's values find back to it. None outside of one.
        num_tokens: trained tokens of the whole optimizer step, over micro-batches and ranks; None means of this batch.
        num_rows: rows with a trained token of the whole optimizer step, likewise.
        num_trajectories: all trajectories of the prompts of the step, those that only carry rewards included; None
            means the rows of this batch.
    """

    token_ids: Tensor
    lengths: Tensor
    prompt_lengths: Tensor
    response_mask: Tensor
    policy_versions: Tensor
    behavior_log_probs: Tensor
    old_log_probs: Tensor
    entropies: Tensor
    evaluated_by: Tensor
    rewards: Tensor
    group: Tensor
    parent: Tensor
    branch_position: Tensor
    branch_score: Tensor
    sampling_log_probs: Tensor | None = None
    advantages: Tensor | None = None
    train_mask: Tensor | None = None
    ref_log_probs: Tensor | None = None
    row: Tensor | None = None
    num_tokens: int | None = None
    num_rows: int | None = None
    num_trajectories: int | None = None

    def __post_init__(self) -> None:
        for name, value in self._tensors().items():
            expected = self.token_ids.shape[:1] if name in _PER_ROW else self.token_ids.shape
            if value.shape != expected:
                raise ValueError(f"{name} must have shape {list(expected)}, got {list(value.shape)}")

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_branch(self) -> Tensor:
        """``[B]`` bool, True on branches."""
        return self.parent != NO_PARENT

    @property
    def is_evaluated(self) -> Tensor:
        """``[B]`` bool, True on rows that have old log-probs and entropies."""
        return self.evaluated_by != NOT_EVALUATED

    @property
    def trained(self) -> Tensor:
        """``[B, T]`` bool, True on tokens that are trained."""
        return self.response_mask if self.train_mask is None else self.train_mask

    @property
    def owners(self) -> Tensor:
        """``[B, T]`` int64, the row for which each token was sampled: an ancestor's where a branch shares it."""
        return token_owners(self.parent, self.branch_position, self.token_ids.shape[1])

    @property
    def is_own(self) -> Tensor:
        """``[B, T]`` bool, False on what a branch shares with its parent."""
        positions = torch.arange(self.token_ids.shape[1], device=self.parent.device)
        return positions > self.branch_position.unsqueeze(-1)

    @property
    def has_gradient(self) -> bool:
        """Whether any token has an advantage."""
        return self.advantages is not None and bool(self.advantages.any())

    def _tensors(self) -> dict[str, Any]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}

    def evaluated(self, rows: Tensor, log_probs: Tensor, entropies: Tensor, policy_version: int) -> TrajectoryBatch:
        """The batch with what a policy says of the tokens of some rows.

        Args:
            rows: ``[R]`` int64, row numbers.
            log_probs: ``[R, T']`` of the sampled tokens; 0 elsewhere.
            entropies: ``[R, T']`` nats, likewise.
            policy_version: of that policy.

        Raises:
            ValueError: if there are values that no log-prob or entropy can have, or any on a token that was not
                sampled.
        """
        width = log_probs.shape[1]
        columns = self.old_log_probs.clone(), self.entropies.clone(), self.evaluated_by.clone()
        for column, values in zip(columns, (log_probs, entropies), strict=False):
            column[rows, :width] = values.to(column)
        columns[2][rows] = policy_version
        check_values("old_log_probs", columns[0], self.response_mask)
        check_values("entropies", columns[1], self.response_mask)
        return replace(self, old_log_probs=columns[0], entropies=columns[1], evaluated_by=columns[2])

    def take_evaluation_(self, rows: Tensor, source: TrajectoryBatch) -> None:
        """Copies, in place, old log-probs and entropies of rows from the batch in which they were evaluated.

        Args:
            rows: ``[R]`` int64, row numbers.
            source: of `R` rows, those of `rows` in their order.
        """
        width = source.token_ids.shape[1]
        self.old_log_probs[rows, :width] = source.old_log_probs
        self.entropies[rows, :width] = source.entropies
        self.evaluated_by[rows] = source.evaluated_by

    def select(self, rows: Tensor) -> TrajectoryBatch:
        """The given rows, cut to the longest of them; the totals stay those of the step.

        Args:
            rows: ``[B']`` int64 row numbers, at least one.
        """
        width = int(self.lengths[rows].max())
        cut = {n: value[rows] if n in _PER_ROW else value[rows, :width] for n, value in self._tensors().items()}
        new_rows = torch.full_like(self.lengths, PARENT_ELSEWHERE)
        new_rows[rows] = torch.arange(len(rows), device=rows.device)
        has_row = cut["parent"] >= 0
        cut["parent"] = torch.where(has_row, new_rows[cut["parent"].clamp(min=0)], cut["parent"])
        return replace(self, **cut)

    @staticmethod
    def cat(batches: Sequence[TrajectoryBatch]) -> TrajectoryBatch:
        """All rows of some batches, padded to the longest; `num_tokens` and `num_rows` are those of the result.

        Args:
            batches: at least one, each with prompts of its own. The result has a field that may be None if all of them
                have it; numbers of trajectories are added up.
        """
        numbers = [batch.num_trajectories for batch in batches]
        num_trajectories = None if None in numbers else sum(number for number in numbers if number is not None)
        if len(batches) == 1:
            return replace(batches[0], num_tokens=None, num_rows=None)
        width = max(batch.token_ids.shape[1] for batch in batches)
        joined: dict[str, Any] = {}
        for f in fields(TrajectoryBatch):
            values = [getattr(batch, f.name) for batch in batches]
            if all(isinstance(value, Tensor) for value in values):
                padding = NOT_SAMPLED if f.name == "policy_versions" else 0
                joined[f.name] = torch.cat(
                    [v if v.ndim == 1 else F.pad(v, (0, width - v.shape[1]), value=padding) for v in values]
                )
        first_row, first_group = 0, 0
        parents, groups = [], []
        for batch in batches:
            parents.append(torch.where(batch.parent >= 0, batch.parent + first_row, batch.parent))
            groups.append(batch.group - batch.group.min() + first_group)
            first_row += len(batch)
            first_group = int(groups[-1].max()) + 1
        joined |= {"parent": torch.cat(parents), "group": torch.cat(groups)}
        return TrajectoryBatch(**joined, num_trajectories=num_trajectories)

    def to(self, device: torch.device) -> TrajectoryBatch:
        """The same batch on another device."""
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def buckets(self, max_tokens: int, shares: bool) -> list[Tensor]:
        """Partitions the rows such that what goes through a policy at once stays within a budget.

        Args:
            max_tokens: of one bucket, padding not included; a longer row gets a bucket of its own.
            shares: whether tokens that rows begin with alike go through the policy once; then those count once, and
                such rows stay together. Otherwise, rows of similar length do.

        Returns:
            Row numbers, ``[B_i]`` int64 each; together every row once.

        Raises:
            ValueError: if `max_tokens` is not positive.
        """
        if not shares:
            return length_buckets(self.lengths, max_tokens)
        rows = PrefixTree.of(self.token_ids, self.lengths).buckets(max_tokens)
        return [torch.tensor(numbers, device=self.lengths.device) for numbers in rows]

    def micro_batches(self, max_tokens: int, shares: bool = False) -> list[TrajectoryBatch]:
        """Cuts the step into batches of at most `max_tokens` tokens, largest first.

        Rows without a trained token are left out.

        Args:
            max_tokens: of one micro-batch, padding not included; a longer row forms a micro-batch of its own.
            shares: whether tokens that rows begin with alike go through the policy once, and count once.
        """
        trained = self.trained.any(-1).nonzero()[:, 0]
        whole = replace(
            self,
            num_tokens=self.num_tokens or int(self.trained.sum()),
            num_rows=self.num_rows or len(trained),
            num_trajectories=self.num_trajectories or len(self),
        )
        rows = whole.select(trained) if len(trained) else None
        return [] if rows is None else [rows.select(bucket) for bucket in rows.buckets(max_tokens, shares)]


def check_values(
    name: str, values: Tensor, is_sampled: Tensor, trajectories: Sequence[Trajectory] | None = None
) -> None:
    """Refuses values that cannot be right; those that slipped against their tokens show where nobody has sampled.

    Args:
        name: of the field, for messages; entropies must not be negative, log-probs not be positive.
        values: ``[B, T]`` log-probs of sampled tokens, or entropies, in nats.
        is_sampled: ``[B, T]`` bool, True on tokens that the policy sampled.
        trajectories: of the rows, so that a message can name the prompt.

    Raises:
        ValueError: at the first value that is not finite, has the wrong sign, or stands where nobody has sampled.
    """
    sign = -1.0 if name == "entropies" else 1.0
    for rule, is_bad in (
        ("be finite", is_sampled & ~values.isfinite()),
        ("be 0 on tokens that were not sampled", ~is_sampled & (values != 0.0)),
        ("not be positive" if sign > 0.0 else "not be negative", sign * values > _ROUNDING),
    ):
        if is_bad.any():
            row, position = is_bad.nonzero()[0].tolist()
            whose = "" if trajectories is None else f" of prompt {trajectories[row].prompt.id}"
            value = values[row, position].item()
            raise ValueError(f"{name}{whose} in row {row} must {rule}, got {value} at position {position}")

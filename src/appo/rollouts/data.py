"""What an iteration collects: trajectories, what was measured of them, and the rows that are trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from appo.core.batch import TrainBatch, TrajectoryBatch
from appo.core.trajectory import BranchPoint, RewardResult, Trajectory
from appo.scorers import Scores


@dataclass(frozen=True, eq=False)
class Measured:
    """What the current policy says of given trajectories.

    Attributes:
        log_probs: ``[T_i]`` a trajectory, of the sampled tokens; 0 elsewhere.
        entropies: ``[T_i]`` a trajectory, nats, exact; 0 elsewhere.
        policy_version: of the policy that was asked.
    """

    log_probs: list[Tensor]
    entropies: list[Tensor]
    policy_version: int

    @staticmethod
    def nothing(num: int, policy_version: int) -> Measured:
        """Of `num` trajectories, to be filled by `put`."""
        return Measured([torch.empty(0)] * num, [torch.empty(0)] * num, policy_version)

    def put(self, rows: Tensor, lengths: Tensor, log_probs: Tensor, entropies: Tensor) -> None:
        """Fills in some trajectories from padded ``[R, T]`` values, which may be elsewhere and have a gradient."""
        padded = zip(log_probs.detach().cpu(), entropies.detach().cpu(), strict=True)
        for row, length, (its_log_probs, its_entropies) in zip(rows.tolist(), lengths.tolist(), padded, strict=True):
            self.log_probs[row] = its_log_probs[:length]
            self.entropies[row] = its_entropies[:length]

    def __getitem__(self, rows: slice) -> Measured:
        return Measured(self.log_probs[rows], self.entropies[rows], self.policy_version)


NOT_MEASURED = -1
"""The version of the policy that measured a trajectory which none has measured."""

Measure = Callable[[Sequence[Trajectory]], Measured]
"""Evaluates trajectories under the policy as it is now."""


@dataclass(frozen=True, eq=False)
class BranchPlan:
    """Initial trajectories, scored, and the branch points chosen among their positions.

    Attributes:
        initial: in the order of their prompts.
        measured: what the scores rest on; None if they rest on nothing that is measured.
        batch: the initial trajectories, not yet rewarded.
        scores: of their positions.
        points: where branches will leave, prompt by prompt, best first.
        num_wanted: branches asked for; fewer `points` means that positions ran short.
    """

    initial: Sequence[Trajectory]
    measured: Measured | None
    batch: TrajectoryBatch
    scores: Scores
    points: Sequence[BranchPoint]
    num_wanted: int


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Everything that came of some prompts in one iteration.

    Attributes:
        plan: the initial trajectories and how branches were chosen.
        trajectories: initial ones, then branches: the rows of `batch`.
        outcomes: of each row.
        batch: all rows, rewarded.
        advantages: ``[B, T]``.
        train: the rows that are trained; row numbers in `trained_rows`.
        trained_rows: ``[R]`` int64.
        measured_by: ``[B]`` int64, version of the policy whose log-probs and entropies `batch` holds; `NOT_MEASURED`
            where it holds none as yet.
        fresh: trajectories of the next iteration that were sampled along.
    """

    plan: BranchPlan
    trajectories: Sequence[Trajectory]
    outcomes: Sequence[RewardResult]
    batch: TrajectoryBatch
    advantages: Tensor
    train: TrainBatch
    trained_rows: Tensor
    measured_by: Tensor
    fresh: Sequence[Trajectory]

    def note(self, rows: Sequence[int], measured: Measured) -> None:
        """Takes up what a policy said of training rows that had not been measured.

        Args:
            rows: row numbers in `train`.
            measured: of these rows.
        """
        assert self.train.old_log_probs is not None
        for row, log_probs, entropies in zip(rows, measured.log_probs, measured.entropies, strict=True):
            number, length = int(self.trained_rows[row]), len(log_probs)
            self.train.old_log_probs[row, :length] = log_probs
            self.batch.old_log_probs[number, :length] = log_probs
            self.batch.entropies[number, :length] = entropies
            self.measured_by[number] = measured.policy_version

    def by_prompt(self) -> list[PromptRows]:
        """The training rows of each prompt, in the order of the prompts."""
        group = self.batch.group[self.trained_rows]
        rows = [(group == number).nonzero()[:, 0] for number in group.unique()]
        return [PromptRows(self, part, bool(self.train.advantages[part].any())) for part in rows]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """What one prompt contributes to the training.

    Attributes:
        source: what its rows came of.
        rows: ``[R]`` int64, row numbers in `source.train`.
        has_signal: whether any of its tokens has an advantage.
    """

    source: Rollouts
    rows: Tensor
    has_signal: bool

    @property
    def is_measured(self) -> Tensor:
        """``[R]`` bool."""
        return self.source.measured_by[self.source.trained_rows[self.rows]] != NOT_MEASURED


@dataclass(frozen=True, eq=False)
class MiniBatch:
    """The prompts of one optimizer step."""

    prompts: Sequence[PromptRows]

    def train_batch(self) -> TrainBatch:
        """Their rows, one prompt behind the other; without old log-probs unless all rows have been measured."""
        by_source = [list(part) for _, part in groupby(self.prompts, key=lambda prompt: id(prompt.source))]
        batch = TrainBatch.cat([p[0].source.train.select(torch.cat([prompt.rows for prompt in p])) for p in by_source])
        is_measured = all(bool(prompt.is_measured.all()) for prompt in self.prompts)
        return batch if is_measured else replace(batch, old_log_probs=None)

    def note(self, measured: Measured) -> None:
        """Takes up what the policy said of the rows of `train_batch` while it was trained on them."""
        start = 0
        for prompt in self.prompts:
            prompt.source.note(prompt.rows.tolist(), measured[start : start + len(prompt.rows)])
            start += len(prompt.rows)


def mini_batches(prompts: Sequence[PromptRows], num: int) -> list[MiniBatch]:
    """Cuts prompts into batches of equally many, in their order.

    Args:
        prompts: a multiple of `num`.
        num: of batches.
    """
    size = len(prompts) // num
    return [MiniBatch(prompts[start : start + size]) for start in range(0, len(prompts), size)]

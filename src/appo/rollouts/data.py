"""What an iteration collects, and the rows of it that optimizer steps train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from appo.core.batch import TrajectoryBatch
from appo.core.collate import make_batch
from appo.core.trajectory import BranchPoint, RewardResult, Trajectory
from appo.scorers import Scores

Evaluate = Callable[[TrajectoryBatch], TrajectoryBatch]


@dataclass(frozen=True)
class Policy:
    """The policy that is trained, as it is now; ranks that have a shard of it each evaluate at the same time.

    Attributes:
        evaluate: adds old log-probs and exact entropies to the rows of a batch that no policy has evaluated.
        reference_log_probs: ``[B, T]`` of the sampled tokens of a batch under the frozen reference, 0 elsewhere; None
            if the loss needs none.
    """

    evaluate: Evaluate
    reference_log_probs: Callable[[TrajectoryBatch], Tensor] | None = None

    def log_probs(self, sequences: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """Log-probs of tokens of any sequences; ranks that have a shard each call it alike, also one that has none.

        Args:
            sequences: ``[N_i]`` int64 token ids.
            masks: ``[N_i]`` bool, True on the tokens that are asked for, at least one each, never the first.

        Returns:
            ``[M_i]`` log-probs of the `M_i` tokens under each mask, in their order.

        Raises:
            ValueError: if a mask does not fit its sequence, is empty, or has the first token.
        """
        for row, (sequence, mask) in enumerate(zip(sequences, masks, strict=True)):
            if mask.dtype != torch.bool or mask.shape != sequence.shape or not mask.any() or mask[0]:
                raise ValueError(
                    f"masks must be bool, of the shape of their sequences, with a token, and without the first; got "
                    f"{mask.dtype} of shape {list(mask.shape)} with {int(mask.sum())} tokens for sequence {row} of "
                    f"shape {list(sequence.shape)}"
                )
        if not sequences:
            # A row that needs no evaluation: this rank takes part in those of the others.
            token_ids = torch.zeros(1, 2, dtype=torch.int64)
            evaluated_by = torch.zeros(1, dtype=torch.int64)
            self.evaluate(make_batch(token_ids, torch.tensor([2]), token_ids > 0, evaluated_by=evaluated_by))
            return []
        token_ids, mask = (pad_sequence(list(rows), batch_first=True) for rows in (sequences, masks))
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        evaluated = self.evaluate(make_batch(token_ids, lengths, mask))
        return [values[of_row] for values, of_row in zip(evaluated.old_log_probs, mask, strict=True)]


@dataclass(frozen=True, eq=False)
class IterationData:
    """Everything that came of some prompts in one iteration.

    Attributes:
        trajectories: roots, then branches: the rows of `batch`.
        results: of the reward, a row each.
        batch: all rows, rewarded and credited.
        scores: of the last round, of the positions of the first rows, from which branches could leave.
        points: where branches left: round by round, prompt by prompt, best first.
        in_answer: of each of `points`, whether the parent goes on there inside its answer.
        num_wanted: branches asked for; fewer `points` means that positions ran short, or that prompts had no parent.
    """

    trajectories: Sequence[Trajectory]
    results: Sequence[RewardResult]
    batch: TrajectoryBatch
    scores: Scores
    points: Sequence[BranchPoint]
    in_answer: Sequence[bool]
    num_wanted: int

    @property
    def roots(self) -> Sequence[Trajectory]:
        """The trajectories that began at a prompt."""
        return [trajectory for trajectory in self.trajectories if trajectory.origin is None]

    @property
    def branches(self) -> Sequence[Trajectory]:
        """Those that left another one."""
        return [trajectory for trajectory in self.trajectories if trajectory.origin is not None]

    def to(self, device: torch.device) -> IterationData:
        """The same data with batch and scores on another device."""
        return replace(self, batch=self.batch.to(device), scores=self.scores.to(device))

    def by_prompt(self) -> list[MiniBatch]:
        """The rows of each prompt that an update needs, in the order of the prompts: roots and trained branches."""
        is_needed = ~self.batch.is_branch | self.batch.trained.any(-1)
        group = self.batch.group
        return [MiniBatch([(self, (is_needed & (group == number)).nonzero()[:, 0])]) for number in group.unique()]


@dataclass(eq=False)
class MiniBatch:
    """The rows of one optimizer step: those of some prompts.

    Attributes:
        parts: data and row numbers ``[R]`` in its batch, prompt by prompt.
        ref_log_probs: ``[R, T]`` under the frozen reference, all parts one behind the other; None as yet, or without
            a reference.
    """

    parts: Sequence[tuple[IterationData, Tensor]]
    ref_log_probs: Tensor | None = None

    @staticmethod
    def cat(batches: Sequence[MiniBatch]) -> MiniBatch:
        """The rows of several, one behind the other."""
        return MiniBatch([part for batch in batches for part in batch.parts])

    @property
    def is_evaluated(self) -> bool:
        """Whether all rows have old log-probs."""
        return all(bool(data.batch.is_evaluated[rows].all()) for data, rows in self.parts)

    @property
    def has_gradient(self) -> bool:
        """Whether any token of the rows has an advantage."""
        return any(data.batch.advantages is not None and data.batch.advantages[rows].any() for data, rows in self.parts)

    def batch(self) -> TrajectoryBatch:
        """The rows."""
        joined = TrajectoryBatch.cat([data.batch.select(rows) for data, rows in self._by_data()])
        num_trajectories = sum(
            int(torch.isin(data.batch.group, data.batch.group[rows]).sum()) for data, rows in self._by_data()
        )
        return replace(joined, ref_log_probs=self.ref_log_probs, num_trajectories=num_trajectories)

    def evaluate(self, evaluate: Evaluate) -> None:
        """Has the rows evaluated that no policy has evaluated, and keeps that in the data they are of."""
        evaluated, start = evaluate(self.batch()), 0
        for data, rows in self._by_data():
            part = evaluated.select(torch.arange(start, start + len(rows)))
            data.batch.take_evaluation_(rows, part)
            start += len(rows)

    def _by_data(self) -> list[tuple[IterationData, Tensor]]:
        """Neighboring parts of the same data as one."""
        groups = groupby(self.parts, key=lambda part: id(part[0]))
        parts = [list(group) for _, group in groups]
        return [(group[0][0], torch.cat([rows for _, rows in group])) for group in parts]


def mini_batches(prompts: Sequence[MiniBatch], num: int) -> list[MiniBatch]:
    """Joins prompts to mini-batches of equally many, in their order.

    Args:
        prompts: a multiple of `num`.
        num: of mini-batches.
    """
    size = len(prompts) // num
    return [MiniBatch.cat(prompts[start : start + size]) for start in range(0, len(prompts), size)]

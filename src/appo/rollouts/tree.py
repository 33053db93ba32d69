"""The tree of a prompt while it grows: its roots, then round by round the branches that leave it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import BranchPoint, Prompt, Trajectory
from appo.rewards import Scored
from appo.scorers import Scores


@dataclass(eq=False)
class Round:
    """A choice of branch points on a tree.

    Attributes:
        batch: all trajectories from before the round, rewarded and, where somebody reads that, evaluated.
        scores: of the positions of `batch`.
        parents: ``[B]`` bool, rows that may be branched.
        allowed: ``[B, T]`` bool, positions that a branch may leave from at all.
        budget: branches that may leave, as far as that is known; None as yet.
        points: where they leave, best first.
    """

    batch: TrajectoryBatch
    scores: Scores
    parents: Tensor
    allowed: Tensor
    budget: int | None = None
    points: list[BranchPoint] = field(default_factory=list)

    @cached_property
    def is_open(self) -> bool:
        """Whether there is anything to branch."""
        return bool(self.parents.any())


@dataclass(eq=False)
class Tree:
    """A prompt and what was sampled for it.

    Attributes:
        prompt: what is asked.
        trajectories: that have ended: roots, then those of each round.
        scored: what the reward makes of the first of `trajectories`.
        batch: of all or the first of `trajectories`, with what the policy says of them; None as yet.
        rounds: those that were begun.
        begun: what is in flight, in the order of its requests.
        num_given: of `trajectories`, those that were sampled before; the tree was begun with them.
    """

    prompt: Prompt
    trajectories: list[Trajectory] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    batch: TrajectoryBatch | None = None
    rounds: list[Round] = field(default_factory=list)
    begun: list[Any] = field(default_factory=list)
    num_given: int = 0

    @staticmethod
    def of_roots(roots: Sequence[Trajectory]) -> list[Tree]:
        """The trees that some roots begin, which come prompt by prompt."""
        groups = (list(group) for _, group in groupby(roots, key=lambda root: root.prompt.id))
        return [Tree(group[0].prompt, group, num_given=len(group)) for group in groups]

    @property
    def filled(self) -> TrajectoryBatch:
        """The batch, once there is one."""
        assert self.batch is not None
        return self.batch

    @property
    def points(self) -> list[BranchPoint]:
        """Where branches have left, round by round."""
        return [point for each in self.rounds for point in each.points]

    @property
    def unscored(self) -> list[Trajectory]:
        """Trajectories that no reward has scored."""
        return self.trajectories[len(self.scored) :]


def in_order(trees: Iterable[Tree], num_rounds: int) -> list[Trajectory]:
    """All trajectories: roots, prompt by prompt, then those of each round likewise."""
    trees = list(trees)
    ends = [[0, *(len(each.batch) for each in tree.rounds), len(tree.trajectories)] for tree in trees]
    return [
        trajectory
        for number in range(num_rounds + 1)
        for tree, of_tree in zip(trees, ends, strict=True)
        for trajectory in tree.trajectories[of_tree[number] : of_tree[number + 1]]
    ]


def take_evaluations_(batch: TrajectoryBatch, trajectories: Sequence[Trajectory], trees: Iterable[Tree]) -> None:
    """Copies, in place, what a policy says of the trajectories of trees into a batch of all of them."""
    rows = _rows(trajectories)
    for tree in trees:
        if tree.batch is not None:
            of_tree = tree.trajectories[: len(tree.batch)]
            batch.take_evaluation_(torch.tensor([rows[id(trajectory)] for trajectory in of_tree]), tree.batch)


def last_scores(trajectories: Sequence[Trajectory], trees: Iterable[Tree]) -> Scores:
    """Those of the last round, as scores of the first of all trajectories."""
    rows = _rows(trajectories)
    parts = [
        ([rows[id(trajectory)] for trajectory in tree.trajectories[: len(current.batch)]], current.scores)
        for tree in trees
        for current in tree.rounds[-1:]
    ]
    return Scores.join(parts, sum(len(of_tree) for of_tree, _ in parts))


def _rows(trajectories: Sequence[Trajectory]) -> dict[int, int]:
    return {id(trajectory): row for row, trajectory in enumerate(trajectories)}

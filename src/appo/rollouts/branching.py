"""Where branches may leave, how many there are, and the choice of their points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import BranchPoint, Trajectory
from appo.functional import select_branch_points
from appo.rollouts.candidates import DEFAULT_EXCLUSIONS, Exclusion, check_exclusions
from appo.scorers import Scores


@dataclass(frozen=True)
class Branching:
    """How many branches there are, when they are chosen, and where they may leave."""

    num_trajectories: int = 16
    """Of a prompt, branches included."""
    num_roots: int = 8
    """Trajectories of a prompt that are sampled from the prompt itself, before branching."""
    when: Literal["iteration", "minibatch"] = "iteration"
    """`iteration` scores and branches all prompts before the first update; `minibatch` those of a mini-batch when it is
    drawn, with the policy that the mini-batches before it have updated."""
    selection: Literal["per_prompt", "per_trajectory"] = "per_prompt"
    """`per_prompt` pools the branches over a prompt's trajectories, `per_trajectory` gives each the same number."""
    split: Literal["keep", "resample"] = "keep"
    """`keep` shares the chosen token with the branch, `resample` draws it anew."""
    fallback: bool = True
    """Branches at positions that the scorer does not prefer when the preferred ones do not suffice."""
    repeat: bool = False
    """Branches several times from a position when even those do not suffice."""
    min_remaining_tokens: int = 1
    """Fewest tokens that a branch must have left under the response limit."""
    tool_calls: bool = True
    """Whether branches call tools, as they must for their outcome to say something of their parent; false ends a branch
    at its first call, which is what the authors' release comes to."""
    exclude: tuple[Exclusion, ...] = DEFAULT_EXCLUSIONS
    """Tokens that are no branch points: `whitespace` alone, `punctuation` and symbols alone, `special` ones, those that
    touch `tags`, the inside of tool `calls`, the inside of the last `answer`: what stands between ``<answer>`` and
    ``</answer>`` and in the last ``\\boxed{...}``. The last token of a trajectory never is one."""

    def __post_init__(self) -> None:
        if self.num_roots < 1:
            raise ValueError(f"rollout.branching.num_roots must be at least 1, got {self.num_roots}")
        if self.num_trajectories < self.num_roots:
            raise ValueError(
                f"rollout.branching.num_trajectories must be at least rollout.branching.num_roots = {self.num_roots}, "
                f"got {self.num_trajectories}"
            )
        if self.selection == "per_trajectory" and self.num_branches % self.num_roots:
            raise ValueError(
                "rollout.branching.num_trajectories - rollout.branching.num_roots must be a multiple of "
                f"rollout.branching.num_roots = {self.num_roots} with rollout.branching.selection=per_trajectory, "
                f"got {self.num_branches}"
            )
        check_exclusions(self.exclude)

    @property
    def num_branches(self) -> int:
        """Branches of a prompt."""
        return self.num_trajectories - self.num_roots

    @property
    def budget(self) -> int:
        """Branches of a prompt or, with `per_trajectory`, of a trajectory."""
        return self.num_branches // self.num_roots if self.selection == "per_trajectory" else self.num_branches


def choose_branch_points(
    scores: Scores, allowed: Tensor, batch: TrajectoryBatch, trajectories: Sequence[Trajectory], branching: Branching
) -> list[BranchPoint]:
    """The points at which branches leave, prompt by prompt, best first; fewer than asked for where positions run short.

    Args:
        scores: of the positions of `batch`.
        allowed: ``[B, T]`` bool, positions that a branch may leave from at all.
        batch: of `trajectories`.
        trajectories: the possible parents, a row each.
        branching: how many points, and how they are taken.
    """
    chosen = select_branch_points(
        scores.values,
        scores.preferred,
        allowed,
        batch.group,
        budget=branching.budget,
        scope=branching.selection,
        fallback=branching.fallback,
        repeat=branching.repeat,
    )
    # A branch shares positions up to its point: to draw the chosen token anew it leaves one position before.
    shift = 1 if branching.split == "resample" or scores.at_turns else 0
    return [
        BranchPoint(trajectories[row], position - shift, score)
        for row, position, score in zip(*(column.tolist() for column in chosen), strict=True)
    ]


def has_room(batch: TrajectoryBatch, max_response_tokens: int, min_remaining: int) -> Tensor:
    """Positions behind which a branch has room.

    Args:
        batch: possible parents.
        max_response_tokens: limit of one trajectory.
        min_remaining: fewest tokens a branch must have left under that limit.

    Returns:
        ``[B, T]`` bool, True on sampled tokens with so much room behind them.
    """
    positions = torch.arange(batch.token_ids.shape[1])
    last_position = batch.prompt_lengths + max_response_tokens - min_remaining - 1
    return batch.response_mask & (positions <= last_position.unsqueeze(-1))

"""Where branches may leave, and the choice of their points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal, get_args

import torch
from torch import Tensor

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import BranchPoint, Trajectory
from appo.functional import select_branch_points
from appo.rollouts.candidates import DEFAULT_EXCLUSIONS, Exclusion, check_exclusions
from appo.rollouts.credit import TrainOn
from appo.scorers import Scores

Parents = Literal["any", "mixed", "right", "wrong"]
"""Which trajectories may be branched, by their rewards."""

SpareBudget = Literal["others", "roots", "drop"]
"""What becomes of the branches of prompts that are not branched."""


@dataclass(frozen=True)
class Branching:
    """How many branches there are, when they are chosen, where they may leave, and what of them is trained."""

    num_trajectories: int = 16
    """Of a prompt, branches included: M in APPO's paper."""
    num_roots: int = 8
    """Trajectories of a prompt that are sampled from the prompt itself, before branching: N in APPO's paper."""
    when: Literal["iteration", "minibatch"] = "iteration"
    """`iteration` scores and branches all prompts before the first update, each as soon as its roots are there;
    `minibatch` those of a mini-batch when it is drawn, with the policy that the mini-batches before it have updated."""
    rounds: int = 1
    """L in APPO's paper: the branches of a prompt are sampled in so many rounds, in equal parts; from the second one on
    branches may be branched, too. Each round chooses among all tokens, those that were chosen before included."""
    selection: Literal["per_prompt", "per_trajectory"] = "per_prompt"
    """`per_prompt` pools the branches over a prompt's trajectories, `per_trajectory` gives each the same number; from
    the second round on these are `num_roots` trajectories drawn uniformly from the prompt's trees."""
    siblings: int = 1
    """Branches that leave at each chosen point."""
    split: Literal["keep", "resample"] = "resample"
    """`resample` draws the chosen token anew, `keep` shares it with the branch."""
    parents: Parents = "mixed"
    """Which trajectories may be branched: those of prompts whose roots differ in reward (`mixed`) and of these the ones
    above (`right`) or below (`wrong`) the mean of the roots, or `any`."""
    spare_budget: SpareBudget = "others"
    """Branches of prompts without a trajectory that may be branched: they go to the `others` in equal parts, are
    sampled as further `roots` of their prompt, or are left out (`drop`)."""
    train_on: TrainOn = "roots"
    """What is trained: `roots` alone, as in APPO's paper; the `suffixes` that leave branch points, the parent's own
    ending among them; `both`, each sampled token once, with the mean advantage of those that share it; or whole
    `trajectories`, shared tokens once for each."""
    fallback: bool = True
    """Branches at positions that the scorer does not prefer when the preferred ones do not suffice."""
    repeat: bool = False
    """Branches several times from a position in one round when even those do not suffice."""
    min_distance: int = 1
    """Tokens by which the points that one round chooses on a trajectory lie apart."""
    sibling_penalty: float = 0.0
    """Taken off the scores of a trajectory for each point that the round has chosen on it, so that others have their
    turn."""
    min_entropy: float = 0.0
    """Nats of entropy that a token must have had to be a branch point: where the policy was sure, a branch repeats its
    parent. Fewer branches are made where there are too few such tokens."""
    min_remaining: float = 0.1
    """Share of `rollout.limits.max_response_tokens` that a branch must have left, so that it can come to its end."""
    tool_calls: bool = True
    """Whether branches call tools, as they must for their outcome to say something of their parent; false ends a branch
    at its first call, which is what the authors' release comes to."""
    exclude: tuple[Exclusion, ...] = DEFAULT_EXCLUSIONS
    """Tokens that are no branch points: `whitespace` alone, `punctuation` and symbols alone, `special` ones, those that
    touch `tags`, the inside of tool `calls`, the inside of the last `answer`: what stands between ``<answer>`` and
    ``</answer>`` and in the last ``\\boxed{...}``. The last token of a trajectory never is one."""

    def __post_init__(self) -> None:
        for name in ("num_roots", "rounds", "siblings", "min_distance"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"rollout.branching.{name} must be at least 1, got {value}")
        for name, kinds in (("parents", Parents), ("spare_budget", SpareBudget), ("train_on", TrainOn)):
            if (value := getattr(self, name)) not in get_args(kinds):
                raise ValueError(f"rollout.branching.{name} must be one of {', '.join(get_args(kinds))}, got {value!r}")
        if self.num_trajectories < self.num_roots:
            raise ValueError(
                f"rollout.branching.num_trajectories must be at least rollout.branching.num_roots = {self.num_roots}, "
                f"got {self.num_trajectories}"
            )
        factors = {"rounds": self.rounds, "siblings": self.siblings}
        if self.selection == "per_trajectory":
            factors["num_roots"] = self.num_roots
        if self.num_branches % prod(factors.values()):
            raise ValueError(
                "rollout.branching.num_trajectories - rollout.branching.num_roots must be a multiple of "
                f"{' * '.join(factors)} = {prod(factors.values())} with rollout.branching.selection={self.selection}, "
                f"got {self.num_branches}"
            )
        if not self.sibling_penalty >= 0.0:
            raise ValueError(f"rollout.branching.sibling_penalty must not be negative, got {self.sibling_penalty}")
        if not self.min_entropy >= 0.0:
            raise ValueError(f"rollout.branching.min_entropy must not be negative, got {self.min_entropy}")
        if not 0.0 <= self.min_remaining < 1.0:
            raise ValueError(f"rollout.branching.min_remaining must lie in [0, 1), got {self.min_remaining}")
        check_exclusions(self.exclude)

    @property
    def num_branches(self) -> int:
        """Branches of a prompt."""
        return self.num_trajectories - self.num_roots


def possible_parents(
    batch: TrajectoryBatch, counts: Tensor, branching: Branching, generator: Callable[[int], torch.Generator]
) -> Tensor:
    """``[B]`` bool, rows that one round may branch.

    Args:
        batch: roots, and the branches of earlier rounds, rewarded.
        counts: ``[B]`` bool, rows that may be parents at all, and whose rewards are compared.
        branching: which rewards they must have, and how many there may be.
        generator: of a prompt, by the number of a row of its; draws them where there are more.
    """
    parents = torch.zeros_like(counts)
    for number in batch.group.unique():
        allowed = (batch.group == number) & counts
        of_roots = batch.rewards[allowed & ~batch.is_branch]
        if branching.parents != "any":
            allowed &= (of_roots != of_roots[:1]).any()
        if branching.parents == "right":
            allowed &= batch.rewards > of_roots.mean()
        if branching.parents == "wrong":
            allowed &= batch.rewards < of_roots.mean()
        rows = allowed.nonzero()[:, 0]
        if branching.selection == "per_trajectory" and len(rows) > branching.num_roots:
            rows = rows[torch.randperm(len(rows), generator=generator(int(rows[0])))[: branching.num_roots]]
        parents[rows] = True
    return parents


def choose_branch_points(
    scores: Scores,
    allowed: Tensor,
    parents: Tensor,
    batch: TrajectoryBatch,
    trajectories: Sequence[Trajectory],
    branching: Branching,
    budgets: Mapping[str, int],
) -> list[BranchPoint]:
    """The points at which branches leave, prompt by prompt, best first; fewer than asked for where positions run short.

    A point belongs to the trajectory that sampled its last shared token, on which its siblings leave, too: what rows
    share is a candidate once. A branch whose first token was drawn anew has that choice in common with its parent.

    Args:
        scores: of the positions of `batch`.
        allowed: ``[B, T]`` bool, positions that a branch may leave from at all.
        parents: ``[B]`` bool, from `possible_parents`.
        batch: of `trajectories`.
        trajectories: a row each.
        branching: how points are taken.
        budgets: branches of each prompt, by its id.

    Returns:
        One for each branch: a point comes once for each of its siblings.
    """
    # A branch shares positions up to its point: to draw the chosen token anew it leaves one position before.
    shift = 1 if branching.split == "resample" or scores.at_turns else 0
    has_point = torch.arange(batch.token_ids.shape[1]) - shift > batch.branch_position.unsqueeze(-1)
    chosen = select_branch_points(
        scores.values,
        scores.preferred,
        allowed & has_point & parents.unsqueeze(-1),
        batch.group,
        budget=_points_of_rows(parents, batch, trajectories, branching, budgets),
        scope=branching.selection,
        fallback=branching.fallback,
        repeat=branching.repeat,
        min_distance=branching.min_distance,
        penalty=branching.sibling_penalty,
    )
    points = [
        BranchPoint(trajectories[row], position - shift, score)
        for row, position, score in zip(*(column.tolist() for column in chosen), strict=True)
    ]
    return [point for point in points for _ in range(branching.siblings)]


def _points_of_rows(
    parents: Tensor,
    batch: TrajectoryBatch,
    trajectories: Sequence[Trajectory],
    branching: Branching,
    budgets: Mapping[str, int],
) -> Tensor:
    """``[B]`` int64, points of each row's prompt or, with `per_trajectory`, of the row."""
    points = torch.tensor([budgets[trajectory.prompt.id] // branching.siblings for trajectory in trajectories])
    if branching.selection == "per_prompt":
        return points
    for number in batch.group.unique():
        rows = (parents & (batch.group == number)).nonzero()[:, 0]
        if len(rows):
            total = points[rows[0]]
            points[rows] = total // len(rows) + (torch.arange(len(rows)) < total % len(rows)).long()
    return points


def has_room(batch: TrajectoryBatch, max_response_tokens: int, min_remaining: float) -> Tensor:
    """Positions behind which a branch has room.

    Args:
        batch: possible parents.
        max_response_tokens: limit of one trajectory.
        min_remaining: share of that limit that a branch must have left; one token at least.

    Returns:
        ``[B, T]`` bool, True on sampled tokens with so much room behind them.
    """
    positions = torch.arange(batch.token_ids.shape[1])
    last_position = batch.prompt_lengths + max_response_tokens - max(1, ceil(min_remaining * max_response_tokens)) - 1
    return batch.response_mask & (positions <= last_position.unsqueeze(-1))

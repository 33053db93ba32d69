"""One APPO iteration from prompts to training rows, top to bottom.

See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from appo.advantages import AdvantageEstimator
from appo.batch import TrainBatch, TrajectoryBatch, collate
from appo.engines import SamplingParams
from appo.functional import select_branch_points
from appo.rewards import RewardRunner
from appo.rollouts.agent import AgentLoop, Start
from appo.rollouts.candidates import CandidateFilter, has_room
from appo.rollouts.stopwatch import Stopwatch
from appo.scorers import Scorer, Scores
from appo.seeding import derive_seed
from appo.trajectory import BranchPoint, Outcome, Prompt, Trajectory


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


Measure = Callable[[Sequence[Trajectory]], Measured]
"""Evaluates trajectories under the policy as it is now."""


@dataclass(frozen=True)
class BranchRules:
    """How many branches there are and where they may leave.

    Attributes:
        num_initial: initial trajectories of a prompt.
        num_branches: branches of a prompt.
        selection: `per_prompt` pools the branches over a prompt's trajectories, `per_trajectory` gives each the same
            number.
        split: `keep` shares the chosen token with the branch, `resample` draws it anew.
        fallback: also takes positions that the scorer does not prefer when the preferred ones do not suffice.
        repeat: takes positions several times when even those do not suffice.
        min_remaining_tokens: fewest tokens a branch must have left under the response limit.
    """

    num_initial: int
    num_branches: int
    selection: str = "per_prompt"
    split: str = "keep"
    fallback: bool = True
    repeat: bool = False
    min_remaining_tokens: int = 1

    def __post_init__(self) -> None:
        if self.num_initial < 1:
            raise ValueError(f"rollout.num_initial must be at least 1, got {self.num_initial}")
        if self.num_branches < 0:
            raise ValueError(
                "rollout.num_trajectories must be at least rollout.num_initial = "
                f"{self.num_initial}, got {self.num_initial + self.num_branches}"
            )
        if self.selection == "per_trajectory" and self.num_branches % self.num_initial:
            raise ValueError(
                "rollout.num_trajectories - rollout.num_initial must be a multiple of rollout.num_initial = "
                f"{self.num_initial} with rollout.selection=per_trajectory, got {self.num_branches}"
            )

    @property
    def budget(self) -> int:
        """Branches of a prompt or, with `per_trajectory`, of a trajectory."""
        return self.num_branches // self.num_initial if self.selection == "per_trajectory" else self.num_branches


@dataclass(frozen=True, eq=False)
class BranchPlan:
    """Initial trajectories, measured and scored, and the branch points chosen among their positions.

    Attributes:
        batch: the initial trajectories, not yet rewarded.
        scores: of their positions.
        points: where branches will leave, prompt by prompt, best first.
        num_wanted: branches asked for; fewer `points` means that positions ran short.
    """

    initial: Sequence[Trajectory]
    measured: Measured
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
        fresh: trajectories of the next iteration that were sampled along.
    """

    plan: BranchPlan
    trajectories: Sequence[Trajectory]
    outcomes: Sequence[Outcome]
    batch: TrajectoryBatch
    advantages: Tensor
    train: TrainBatch
    trained_rows: Tensor
    fresh: Sequence[Trajectory]

    def by_prompt(self) -> list[PromptRows]:
        """The training rows of each prompt, in the order of the prompts."""
        group = self.batch.group[self.trained_rows]
        rows = [(group == number).nonzero()[:, 0] for number in group.unique()]
        return [PromptRows(self.train, part, bool(self.train.advantages[part].any())) for part in rows]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """What one prompt contributes to the training.

    Attributes:
        source: the batch its rows are in.
        rows: ``[R]`` int64, row numbers there.
        has_signal: whether any of its tokens has an advantage.
    """

    source: TrainBatch
    rows: Tensor
    has_signal: bool


def mini_batches(prompts: Sequence[PromptRows], num: int) -> list[TrainBatch]:
    """Cuts prompts into batches of equally many, in their order.

    Args:
        prompts: a multiple of `num`.
        num: of batches.
    """
    size = len(prompts) // num
    batches = []
    for start in range(0, len(prompts), size):
        by_source = groupby(prompts[start : start + size], key=lambda prompt: id(prompt.source))
        parts = [list(part) for _, part in by_source]
        batches.append(TrainBatch.cat([p[0].source.select(torch.cat([prompt.rows for prompt in p])) for p in parts]))
    return batches


class Collector:
    """Turns prompts into training rows.

    Args:
        agent: samples trajectories with tools.
        measure: log-probs and entropies of the current policy.
        measure_reference: those of the frozen reference; None if the loss needs none.
        scorer: where to branch.
        advantage: how outcomes become credit.
        reward: says what trajectories are worth.
        rules: how many branches, and which positions may have one.
        candidates: which tokens may be branch points.
        sampling: how tokens are drawn.
        seed: of everything random.
        stopwatch: where the seconds of each phase are added up.
    """

    def __init__(
        self,
        *,
        agent: AgentLoop,
        measure: Measure,
        measure_reference: Measure | None,
        scorer: Scorer,
        advantage: AdvantageEstimator,
        reward: RewardRunner,
        rules: BranchRules,
        candidates: CandidateFilter,
        sampling: SamplingParams,
        seed: int,
        stopwatch: Stopwatch,
    ) -> None:
        self.agent = agent
        self.measure = measure
        self.measure_reference = measure_reference
        self.scorer = scorer
        self.advantage = advantage
        self.reward = reward
        self.rules = rules
        self.candidates = candidates
        self.sampling = sampling
        self.seed = seed
        self.stopwatch = stopwatch
        self._num_sampled_tokens = 0

    def take_num_sampled_tokens(self) -> int:
        """Tokens sampled since the last call; what a branch shares with its parent does not count."""
        number, self._num_sampled_tokens = self._num_sampled_tokens, 0
        return number

    def initial_starts(self, prompts: Sequence[Prompt], iteration: int) -> list[Start]:
        """`num_initial` starts a prompt, prompt by prompt."""
        return [
            Start(prompt, derive_seed(self.seed, "initial", iteration, prompt.id, number))
            for prompt in prompts
            for number in range(self.rules.num_initial)
        ]

    def sample_initial(self, prompts: Sequence[Prompt], iteration: int) -> list[Trajectory]:
        """Initial trajectories, prompt by prompt."""
        return self._sample(self.initial_starts(prompts, iteration), "sampling")

    def collect(self, initial: Sequence[Trajectory], iteration: int, fresh: Sequence[Start] = ()) -> Rollouts:
        """Scores, branches, rewards and credits trajectories that were sampled before.

        Args:
            initial: all initial trajectories of some prompts, prompt by prompt.
            iteration: number of the iteration, for seeds.
            fresh: starts of the next iteration, sampled in the same engine run as the branches.
        """
        plan = self.plan_branches(initial, iteration)
        starts = [
            Start(
                point.trajectory.prompt,
                derive_seed(self.seed, "branch", iteration, point.trajectory.prompt.id, i),
                point,
            )
            for i, point in enumerate(plan.points)
        ]
        sampled = self._sample([*starts, *fresh], "branching")
        branches, fresh_trajectories = sampled[: len(starts)], sampled[len(starts) :]
        return self.credit(plan, branches, fresh_trajectories)

    def _sample(self, starts: Sequence[Start], phase: str) -> list[Trajectory]:
        with self.stopwatch(phase):
            trajectories = self.agent.run(starts, self.sampling)
        self._num_sampled_tokens += sum(trajectory.num_own_tokens for trajectory in trajectories)
        return trajectories

    def plan_branches(self, initial: Sequence[Trajectory], iteration: int) -> BranchPlan:
        """Measures trajectories with the current policy, scores their positions, and chooses branch points."""
        with self.stopwatch("log_probs"):
            measured = self.measure(initial)
        with self.stopwatch("scoring"):
            batch = collate(initial, old_log_probs=measured.log_probs, entropies=measured.entropies)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "scorer", iteration, initial[0].prompt.id))
            scores = self.scorer(batch, generator)
            rules = self.rules
            candidates = has_room(
                batch,
                torch.tensor([trajectory.prompt_length for trajectory in initial]),
                self.agent.limits.max_response_tokens,
                rules.min_remaining_tokens,
            )
            if not scores.at_turns:
                candidates &= self.candidates(batch)
            chosen = select_branch_points(
                scores.values,
                scores.preferred,
                candidates,
                batch.group,
                budget=rules.budget,
                scope=rules.selection,
                fallback=rules.fallback,
                repeat=rules.repeat,
            )
        shift = 1 if rules.split == "resample" or scores.at_turns else 0
        points = [
            BranchPoint(initial[row], position - shift, score)
            for row, position, score in zip(*(column.tolist() for column in chosen), strict=True)
        ]
        num_prompts = int(batch.group.max()) + 1
        return BranchPlan(initial, measured, batch, scores, points, num_prompts * rules.num_branches)

    def credit(self, plan: BranchPlan, branches: Sequence[Trajectory], fresh: Sequence[Trajectory]) -> Rollouts:
        """Rewards every trajectory and turns the rewards into the advantages of the rows that are trained."""
        trajectories = [*plan.initial, *branches]
        with self.stopwatch("rewards"):
            outcomes = self.reward(trajectories)
        measured = plan.measured
        if self.advantage.trains_branches and branches:
            with self.stopwatch("log_probs"):
                more = self.measure(branches)
            measured = Measured(
                measured.log_probs + more.log_probs, measured.entropies + more.entropies, more.policy_version
            )
        with self.stopwatch("advantages"):
            batch = collate(
                trajectories,
                old_log_probs=measured.log_probs,
                entropies=measured.entropies,
                rewards=[outcome.reward for outcome in outcomes],
            )
            advantages = self.advantage(batch)
            rows = torch.arange(len(trajectories) if self.advantage.trains_branches else len(plan.initial))
        train = self._train_batch(batch, advantages, rows, trajectories)
        return Rollouts(plan, trajectories, outcomes, batch, advantages, train, rows, fresh)

    def _train_batch(
        self, batch: TrajectoryBatch, advantages: Tensor, rows: Tensor, trajectories: Sequence[Trajectory]
    ) -> TrainBatch:
        reference = None
        if self.measure_reference is not None:
            with self.stopwatch("reference"):
                log_probs = self.measure_reference([trajectories[row] for row in rows.tolist()]).log_probs
            reference = torch.nn.utils.rnn.pad_sequence(log_probs, batch_first=True)
        width = int(batch.lengths[rows].max())
        return TrainBatch(
            token_ids=batch.token_ids[rows, :width],
            lengths=batch.lengths[rows],
            response_mask=batch.response_mask[rows, :width],
            behavior_log_probs=batch.behavior_log_probs[rows, :width],
            old_log_probs=batch.old_log_probs[rows, :width],
            advantages=advantages[rows, :width],
            ref_log_probs=reference,
        )

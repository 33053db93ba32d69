"""One APPO iteration from prompts to training rows, top to bottom.

See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from time import perf_counter

import torch
from torch import Tensor

from appo.advantages import AdvantageEstimator
from appo.core.batch import TrainBatch, TrajectoryBatch, collate
from appo.core.seeding import derive_seed
from appo.core.trajectory import BranchPoint, Prompt, Trajectory
from appo.distributed import comm
from appo.engines import SamplingParams
from appo.functional import select_branch_points
from appo.rewards import RewardRunner
from appo.rollouts.async_agent import Agent, SamplingThread
from appo.rollouts.branching import CandidateFilter, has_room
from appo.rollouts.data import NOT_MEASURED, BranchPlan, Measure, Measured, PromptRows, Rollouts
from appo.rollouts.episode import Start
from appo.rollouts.timing import Stopwatch
from appo.scorers import Scorer


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
        branch_tool_calls: whether branches call tools; False ends them at their first call.
    """

    num_initial: int
    num_branches: int
    selection: str = "per_prompt"
    split: str = "keep"
    fallback: bool = True
    repeat: bool = False
    min_remaining_tokens: int = 1
    branch_tool_calls: bool = True

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
        agent: Agent,
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
        if not self.rules.num_branches and not fresh:
            # Between initial trajectories and branches the engine stays awake, to keep the prefixes that they share.
            self.agent.rest()
        plan = self.plan_branches(initial, iteration)
        starts = [
            Start(
                prompt,
                derive_seed(self.seed, "branch", iteration, prompt.id, number),
                point,
                self.rules.branch_tool_calls,
            )
            for prompt, points in groupby(plan.points, key=lambda point: point.trajectory.prompt)
            for number, point in enumerate(points)
        ]
        sampled = self._sample([*starts, *fresh], "branching")
        self.agent.rest()
        branches, fresh_trajectories = sampled[: len(starts)], sampled[len(starts) :]
        return self.credit(plan, branches, fresh_trajectories)

    def sample_ahead(self, starts: Sequence[Start]) -> Future[list[Trajectory]]:
        """Begins trajectories that are not needed yet; an agent in a thread of its own samples them meanwhile."""
        assert isinstance(self.agent, SamplingThread)
        return self.agent.begin(starts, self.sampling)

    def wait_for(self, ahead: Future[list[Trajectory]]) -> list[Trajectory]:
        """The trajectories of `sample_ahead`, once they are there."""
        return self._sampled(ahead.result, "waiting")

    def _sample(self, starts: Sequence[Start], phase: str) -> list[Trajectory]:
        return self._sampled(lambda: self.agent.run(starts, self.sampling), phase)

    def _sampled(self, wait: Callable[[], list[Trajectory]], phase: str) -> list[Trajectory]:
        started, tools_s = perf_counter(), self.agent.costs.tools_s
        with self.stopwatch(phase):
            trajectories = wait()
        waited_s = perf_counter() - started
        # What a thread has counted may have begun before this wait.
        self.stopwatch.move(min(waited_s, self.agent.costs.tools_s - tools_s), phase, "tools")
        self._num_sampled_tokens += sum(trajectory.num_own_tokens for trajectory in trajectories)
        return trajectories

    def plan_branches(self, initial: Sequence[Trajectory], iteration: int) -> BranchPlan:
        """Scores the positions of trajectories by the current policy, and chooses branch points."""
        measured = None
        if self.scorer.reads_measurements or self.advantage.reads_measurements:
            measured = self._measured(initial)
        with self.stopwatch("scoring"):
            batch = _collate(initial, measured)
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
        # Also with no branches at all: others may have some, and all processes measure at the same time.
        if measured and self.advantage.trains_branches and self.advantage.reads_measurements:
            more = self._measured(branches)
            measured = Measured(
                measured.log_probs + more.log_probs, measured.entropies + more.entropies, more.policy_version
            )
        with self.stopwatch("advantages"):
            batch = _collate(trajectories, measured, [outcome.reward for outcome in outcomes])
            measured_by = torch.full((len(trajectories),), NOT_MEASURED)
            if measured:
                measured_by[: len(measured.log_probs)] = measured.policy_version
            advantages = self.advantage(batch)
            rows = torch.arange(len(trajectories) if self.advantage.trains_branches else len(plan.initial))
        train = self._train_batch(batch, advantages, rows, trajectories)
        return Rollouts(plan, trajectories, outcomes, batch, advantages, train, rows, measured_by, fresh)

    def measure_rest(self, prompts: Sequence[PromptRows]) -> None:
        """Measures those rows of some prompts that have not been measured."""
        rest = [
            (prompt.source, row)
            for prompt in prompts
            for row, is_measured in zip(prompt.rows.tolist(), prompt.is_measured.tolist(), strict=True)
            if not is_measured
        ]
        if any(comm.gather(bool(rest))):
            measured = self._measured([source.trajectories[int(source.trained_rows[row])] for source, row in rest])
            for i, (source, row) in enumerate(rest):
                source.note([row], measured[i : i + 1])

    def _measured(self, trajectories: Sequence[Trajectory]) -> Measured:
        with self.stopwatch("log_probs"):
            return self.measure(trajectories)

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


def _collate(
    trajectories: Sequence[Trajectory], measured: Measured | None, rewards: Sequence[float] | None = None
) -> TrajectoryBatch:
    if measured is None:
        return collate(trajectories, rewards=rewards)
    return collate(trajectories, old_log_probs=measured.log_probs, entropies=measured.entropies, rewards=rewards)

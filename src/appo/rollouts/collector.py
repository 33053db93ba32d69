"""APPO's algorithm on one page: from roots to branches, rewards and credit.

See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from appo.advantages import AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.collate import collate
from appo.core.seeding import derive_seed
from appo.core.trajectory import BranchPoint, Prompt, Trajectory
from appo.engines import SamplingParams
from appo.rewards import RewardRunner
from appo.rollouts.agent import Agent
from appo.rollouts.branching import Branching, choose_branch_points, has_room
from appo.rollouts.candidates import CandidateFilter
from appo.rollouts.data import IterationData, Policy
from appo.rollouts.episode import RolloutRequest
from appo.rollouts.timing import PhaseTimer
from appo.scorers import Scorer, Scores, ScoringContext


class Collector:
    """Turns prompts into rows that can be trained.

    Args:
        agent: samples trajectories with tools.
        policy: evaluates trajectories.
        scorer: where to branch.
        advantage: how outcomes become credit.
        reward: what trajectories are worth.
        branching: how many branches, and where they may leave.
        candidates: which tokens may be branch points.
        sampling: how tokens are drawn.
        seed: of everything random.
        timer: where the seconds of each phase are added up.
    """

    def __init__(
        self,
        *,
        agent: Agent,
        policy: Policy,
        scorer: Scorer,
        advantage: AdvantageEstimator,
        reward: RewardRunner,
        branching: Branching,
        candidates: CandidateFilter,
        sampling: SamplingParams,
        seed: int,
        timer: PhaseTimer,
    ) -> None:
        self.agent = agent
        self.policy = policy
        self.branching = branching
        self.candidates = candidates
        self.sampling = sampling
        self.seed = seed
        self.score = timer.timed("scoring", scorer)
        self.choose = timer.timed("scoring", choose_branch_points)
        self.reward = timer.timed("rewards", reward)
        self.advantage = timer.timed("advantages", advantage)
        self.trains_branches = advantage.trains_branches
        self.scores_log_probs = scorer.reads_log_probs or advantage.reads_log_probs
        self.credits_log_probs = advantage.reads_log_probs

    def collect(self, roots: Sequence[Trajectory], iteration: int) -> IterationData:
        """Scores roots, samples branches, rewards all of them, and credits their tokens.

        Args:
            roots: of some prompts, prompt by prompt.
            iteration: its number, for seeds.
        """
        batch = collate(roots)
        if self.scores_log_probs:
            batch = self.policy.evaluate(batch)  # old log-probs and entropies
        scores = self.score(batch, self._context(roots, iteration))
        points = self.choose(scores, self._allowed(batch, scores), batch, roots, self.branching)
        branches = self.agent.run(self.branch_requests(points, iteration), self.sampling)
        self.agent.sleep()
        trajectories = [*roots, *branches]
        results = self.reward(trajectories)
        batch = collate(trajectories, [result.reward for result in results], evaluated=batch)
        if self.credits_log_probs and self.trains_branches:
            batch = self.policy.evaluate(batch)  # those of the branches
        batch = replace(batch, advantages=self.advantage(batch))
        trained_rows = torch.arange(len(trajectories) if self.trains_branches else len(roots))
        num_wanted = len({root.prompt.id for root in roots}) * self.branching.num_branches
        return IterationData(trajectories, results, batch, scores, points, num_wanted, trained_rows)

    def sample_roots(self, prompts: Sequence[Prompt], iteration: int) -> list[Trajectory]:
        """The trajectories that begin at some prompts, prompt by prompt."""
        roots = self.agent.run(self.root_requests(prompts, iteration), self.sampling)
        if not self.branching.num_branches:
            # Else the engine stays awake, to keep the prefixes that roots and branches share.
            self.agent.sleep()
        return roots

    def begin_roots(self, prompts: Sequence[Prompt], iteration: int) -> Any:
        """Begins them, for `Agent.finish` to end: they are sampled along with what is sampled next."""
        return self.agent.begin(self.root_requests(prompts, iteration), self.sampling)

    def root_requests(self, prompts: Sequence[Prompt], iteration: int) -> list[RolloutRequest]:
        """`num_roots` requests a prompt, prompt by prompt."""
        return [
            RolloutRequest(prompt, derive_seed(self.seed, "initial", iteration, prompt.id, number))
            for prompt in prompts
            for number in range(self.branching.num_roots)
        ]

    def branch_requests(self, points: Sequence[BranchPoint], iteration: int) -> list[RolloutRequest]:
        """A request a point, prompt by prompt."""
        return [
            RolloutRequest(
                prompt, derive_seed(self.seed, "branch", iteration, prompt.id, number), point, self.branching.tool_calls
            )
            for prompt, of_prompt in groupby(points, key=lambda point: point.trajectory.prompt)
            for number, point in enumerate(of_prompt)
        ]

    def _context(self, roots: Sequence[Trajectory], iteration: int) -> ScoringContext:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "scorer", iteration, roots[0].prompt.id))
        return ScoringContext(generator, roots, self.candidates.tokenizer, self.policy.log_probs)

    def _allowed(self, batch: TrajectoryBatch, scores: Scores) -> Tensor:
        """``[B, T]`` bool, positions that a branch may leave from at all."""
        allowed = has_room(batch, self.agent.limits.max_response_tokens, self.branching.min_remaining_tokens)
        return allowed if scores.at_turns else allowed & self.candidates(batch)

"""APPO's algorithm on one page: from roots to branches, rewards and credit.

See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), Algorithm 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
from appo.rollouts.branching import (
    Branching,
    branch_budgets,
    choose_branch_points,
    has_room,
    possible_parents,
)
from appo.rollouts.candidates import CandidateFilter
from appo.rollouts.credit import credited
from appo.rollouts.data import IterationData, Policy
from appo.rollouts.episode import RolloutRequest
from appo.rollouts.timing import PhaseTimer
from appo.scorers import BatchContext, Scorer, Scores

OnTruncation = Literal["penalize", "mask"]
"""Trains them with the reward that they have, or leaves them out."""


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
        truncated: what is made of roots that reach the response limit.
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
        truncated: OnTruncation = "penalize",
    ) -> None:
        self.agent = agent
        self.policy = policy
        self.branching = branching
        self.candidates = candidates
        self.sampling = sampling
        self.seed = seed
        self.truncated = truncated
        self.score = timer.timed("scoring", scorer)
        self.choose = timer.timed("scoring", choose_branch_points)
        self.reward = timer.timed("rewards", reward)
        self.advantage = timer.timed("advantages", advantage)
        reads_entropies = branching.num_branches > 0 and branching.min_entropy > 0.0
        self.scores_log_probs = scorer.reads_log_probs or advantage.reads_log_probs or reads_entropies
        self.credits_log_probs = advantage.reads_log_probs
        self.compares_policies = scorer.compares_policies and branching.num_branches > 0

    def collect(self, roots: Sequence[Trajectory], iteration: int) -> IterationData:
        """Scores trajectories, samples branches, rewards all of them, and credits their tokens.

        Args:
            roots: of some prompts, prompt by prompt.
            iteration: its number, for seeds.
        """
        trajectories, points = list(roots), list[BranchPoint]()
        results = list(self.reward(roots))
        batch = collate(trajectories, [result.reward for result in results])
        for number in range(self.branching.rounds):
            if self.scores_log_probs:
                batch = self.policy.evaluate(batch)  # old log-probs and entropies
            generator = self._generator("scorer", roots, iteration, *((number,) if number else ()))
            context = self._context(generator, trajectories)
            scores = self.score(batch, context)
            parents = self._parents(batch, trajectories, iteration, number)
            budgets = branch_budgets(_is_open(trajectories, parents), self.branching)
            chosen = self.choose(
                scores, self._allowed(batch, scores), parents, batch, trajectories, self.branching, budgets
            )
            requests = self.branch_requests(chosen, iteration, points) + self._spare_roots(
                trajectories, budgets, iteration
            )
            sampled = self.agent.run(requests, self.sampling)
            trajectories, points = [*trajectories, *sampled], [*points, *chosen]
            results += self.reward(sampled)
            batch = collate(trajectories, [result.reward for result in results], evaluated=batch)
        self.agent.sleep()
        if self.credits_log_probs:
            batch = self.policy.evaluate(batch)  # those of the last branches
        context = self._context(self._generator("advantage", roots, iteration), trajectories)
        batch = credited(batch, context, self.advantage, self.branching.train_on, self._counts(trajectories))
        num_wanted = len({root.prompt.id for root in roots}) * self.branching.num_branches
        return IterationData(
            trajectories, results, batch, scores, points, self._in_answer(batch, trajectories, points), num_wanted
        )

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
        numbers = range(self.branching.num_roots)
        return [self._root_request(prompt, iteration, number) for prompt in prompts for number in numbers]

    def branch_requests(
        self, points: Sequence[BranchPoint], iteration: int, earlier: Sequence[BranchPoint] = ()
    ) -> list[RolloutRequest]:
        """A request a point, prompt by prompt.

        Args:
            points: of one round.
            iteration: its number, for seeds.
            earlier: points of the rounds before.
        """
        numbers = Counter(point.trajectory.prompt.id for point in earlier)
        requests = []
        for point in points:
            prompt = point.trajectory.prompt
            seed = derive_seed(self.seed, "branch", iteration, prompt.id, numbers[prompt.id])
            requests.append(RolloutRequest(prompt, seed, point, self.branching.tool_calls))
            numbers[prompt.id] += 1
        return requests

    def _root_request(self, prompt: Prompt, iteration: int, number: int) -> RolloutRequest:
        return RolloutRequest(prompt, derive_seed(self.seed, "initial", iteration, prompt.id, number))

    def _spare_roots(
        self, trajectories: Sequence[Trajectory], budgets: Mapping[str, int], iteration: int
    ) -> list[RolloutRequest]:
        """Further roots, with ``spare_budget: roots``, of prompts that have no branches in a round."""
        if self.branching.spare_budget != "roots":
            return []
        of_prompt = Counter(trajectory.prompt for trajectory in trajectories if trajectory.origin is None)
        number_of = self.branching.num_branches // self.branching.rounds
        return [
            self._root_request(prompt, iteration, first + number)
            for prompt, first in of_prompt.items()
            if not budgets[prompt.id]
            for number in range(number_of)
        ]

    def _generator(self, use: str, roots: Sequence[Trajectory], *numbers: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, use, numbers[0], roots[0].prompt.id, *numbers[1:]))

    def _context(self, generator: torch.Generator, trajectories: Sequence[Trajectory]) -> BatchContext:
        return BatchContext(generator, trajectories, self.candidates.tokenizer, self.policy.log_probs)

    def _counts(self, trajectories: Sequence[Trajectory]) -> Tensor:
        """``[B]`` bool, rows that enter statistics, are trained, and may be branched.

        A branch that was cut off says nothing of its branch point; of roots `truncated` decides.
        """
        cut_off = torch.tensor([trajectory.finish_reason == "length" for trajectory in trajectories])
        is_branch = torch.tensor([trajectory.origin is not None for trajectory in trajectories])
        return ~cut_off | (~is_branch if self.truncated == "penalize" else torch.zeros_like(is_branch))

    def _parents(
        self, batch: TrajectoryBatch, trajectories: Sequence[Trajectory], iteration: int, number: int
    ) -> Tensor:
        """``[B]`` bool, rows that a round may branch: of a prompt the same ones whichever process has it."""

        def of_prompt(row: int) -> torch.Generator:
            return self._generator("parents", [trajectories[row]], iteration, number)

        return possible_parents(batch, self._counts(trajectories), self.branching, of_prompt)

    def _in_answer(
        self, batch: TrajectoryBatch, trajectories: Sequence[Trajectory], points: Sequence[BranchPoint]
    ) -> list[bool]:
        """Of each point, whether its parent goes on there inside its answer."""
        inside = self.candidates.in_answer(batch)
        rows = {id(trajectory): row for row, trajectory in enumerate(trajectories)}
        # A point may be the last position of the widest row.
        ends = [min(point.position + 1, inside.shape[1] - 1) for point in points]
        return [bool(inside[rows[id(point.trajectory)], end]) for point, end in zip(points, ends, strict=True)]

    def _allowed(self, batch: TrajectoryBatch, scores: Scores) -> Tensor:
        """``[B, T]`` bool, positions that a branch may leave from at all."""
        allowed = has_room(batch, self.agent.limits.max_response_tokens, self.branching.min_remaining)
        if self.branching.min_entropy > 0.0:
            allowed &= batch.entropies >= self.branching.min_entropy
        return allowed if scores.at_turns else allowed & self.candidates(batch)


def _is_open(trajectories: Sequence[Trajectory], parents: Tensor) -> dict[str, bool]:
    """Whether a prompt has a possible parent, by its id."""
    is_open: dict[str, bool] = {}
    for trajectory, is_parent in zip(trajectories, parents.tolist(), strict=True):
        is_open[trajectory.prompt.id] = is_open.get(trajectory.prompt.id, False) or is_parent
    return is_open

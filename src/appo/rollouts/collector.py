"""APPO's algorithm on one page: from roots to branches, rewards and credit.

See "Agentic Procedural Policy Optimization" (https://arxiv.org/abs/2606.12384), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from appo.advantages import AdvantageEstimator
from appo.core.batch import TrajectoryBatch
from appo.core.collate import collate
from appo.core.seeding import derive_seed
from appo.core.trajectory import BranchPoint, Prompt, Trajectory
from appo.distributed import comm
from appo.engines import SamplingParams
from appo.rewards import RewardRunner
from appo.rollouts.branching import Branching, choose_branch_points, has_room, possible_parents
from appo.rollouts.budgets import branch_budgets
from appo.rollouts.candidates import CandidateFilter
from appo.rollouts.credit import credited
from appo.rollouts.data import IterationData, Policy
from appo.rollouts.episode import RolloutRequest
from appo.rollouts.growth import Growth
from appo.rollouts.requests import RequestMaker
from appo.rollouts.sampling import Agent
from appo.rollouts.timing import PhaseTimer
from appo.rollouts.tree import Round, Tree, in_order, last_scores, take_evaluations_
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
        in_lockstep: takes every step with all prompts at once, as processes must that evaluate or sample together.
            Otherwise a prompt is branched as soon as its roots have ended and been rewarded.
        deterministic: what is sampled together does not depend on how fast rewards are.
        weights_follow: whether the engine gets new weights before it is asked for anything once it was sent to sleep.
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
        in_lockstep: bool = False,
        deterministic: bool = False,
        weights_follow: bool = False,
    ) -> None:
        self.agent = agent
        self.policy = policy
        self.branching = branching
        self.candidates = candidates
        self.sampling = sampling
        self.seed = seed
        self.truncated = truncated
        self.in_lockstep, self.deterministic = in_lockstep, deterministic
        self.weights_follow = weights_follow
        self.requests = RequestMaker(branching, seed)
        self.timer = timer
        self.rewards = reward
        self.score = timer.timed("scoring", scorer)
        self.choose = timer.timed("scoring", choose_branch_points)
        self.advantage = timer.timed("advantages", advantage)
        self.num_rounds = branching.rounds if branching.num_branches else 0
        reads_log_probs = scorer.reads_log_probs or advantage.reads_log_probs or branching.min_entropy > 0.0
        self.scores_log_probs = reads_log_probs and self.num_rounds > 0
        self.credits_log_probs = advantage.reads_log_probs
        self.compares_policies = scorer.compares_policies and branching.num_branches > 0

    def collect(self, trees: Sequence[Tree], iteration: int) -> IterationData:
        """Scores trajectories, samples branches, rewards all of them, and credits their tokens.

        Args:
            trees: of some prompts, with their roots or with what was begun for them; roots of others are sampled.
            iteration: its number, for seeds.
        """
        self.begin_trees(trees, iteration)
        if self.in_lockstep:
            self._grow_together(trees, iteration)
        else:
            Growth(self, trees, iteration, self.deterministic).run()
        self.sleep()
        trajectories = in_order(trees, self.num_rounds)
        scored = {id(t): each for tree in trees for t, each in zip(tree.trajectories, tree.scored, strict=True)}
        results = self.rewards.results([scored[id(trajectory)] for trajectory in trajectories], trajectories)
        batch = collate(trajectories, [result.reward for result in results])
        take_evaluations_(batch, trajectories, trees)
        if self.credits_log_probs:
            batch = self.policy.evaluate(batch)  # those of the last branches
        context = self._context(self._generator("advantage", trajectories, iteration), trajectories)
        batch = credited(batch, context, self.advantage, self.branching.train_on, self._counts(trajectories))
        points = [point for number in range(self.num_rounds) for tree in trees for point in tree.rounds[number].points]
        in_answer = self._in_answer(batch, trajectories, points)
        scores, num_wanted = last_scores(trajectories, trees), len(trees) * self.branching.num_branches
        return IterationData(trajectories, results, batch, scores, points, in_answer, num_wanted)

    def _grow_together(self, trees: Sequence[Tree], iteration: int) -> None:
        """Takes the rounds of all trees at the same time, and with those of other processes."""
        self._reward_together(trees)
        num_trees = max(comm.all_gather(len(trees)))
        for _ in range(self.num_rounds):
            self.evaluate(trees)
            for tree in trees:
                self.begin_round(tree, iteration)
            for _ in range(num_trees - len(trees)):
                self.score(trees[-1].rounds[-1].batch, self._scorer_context(trees[-1], iteration))
            is_open = {tree.prompt.id: tree.rounds[-1].is_open for tree in trees}
            everywhere = [item for items in comm.all_gather(list(is_open.items())) for item in items]
            budgets = branch_budgets(is_open, self.branching, everywhere)
            requests = [self.more_requests(tree, budgets[tree.prompt.id], iteration) for tree in trees]
            sampled = iter(self.agent.run([request for own in requests for request in own], self.sampling))
            for tree, own in zip(trees, requests, strict=True):
                tree.trajectories += islice(sampled, len(own))
            self._reward_together(trees)

    def _reward_together(self, trees: Sequence[Tree]) -> None:
        with self.timer("rewards"):
            results = iter(self.rewards([trajectory for tree in trees for trajectory in tree.unscored]))
        for tree in trees:
            tree.scored += islice(results, len(tree.unscored))

    def evaluate(self, trees: Sequence[Tree]) -> None:
        """Makes batches of the trajectories of trees and, where somebody reads that, has them evaluated at once."""
        for tree in trees:
            tree.batch = collate(tree.trajectories, evaluated=tree.batch)
        if self.scores_log_probs:
            evaluated, start = self.policy.evaluate(TrajectoryBatch.cat([tree.filled for tree in trees])), 0
            for tree in trees:
                rows = torch.arange(len(tree.filled))
                tree.filled.take_evaluation_(rows, evaluated.select(rows + start))
                start += len(rows)

    def rewards_of(self, tree: Tree) -> Tensor:
        """``[B]``, what the trajectories of a tree are worth.

        Raises:
            RewardError: if one could not be scored, and that ends the run.
        """
        results = self.rewards.results(tree.scored, tree.trajectories)
        return torch.tensor([result.reward for result in results], dtype=torch.float32)

    def begin_round(self, tree: Tree, iteration: int) -> None:
        """Scores the tokens of a tree, which is evaluated and rewarded."""
        batch, number = replace(tree.filled, rewards=self.rewards_of(tree)), len(tree.rounds)
        scores = self.score(batch, self._scorer_context(tree, iteration))
        parents = self._parents(batch, tree.trajectories, iteration, number)
        tree.rounds.append(Round(batch, scores, parents, self._allowed(batch, scores)))

    def more_requests(self, tree: Tree, budget: int, iteration: int) -> list[RolloutRequest]:
        """Those of a tree's last round that a budget allows and the one before did not, which was no larger."""
        current = tree.rounds[-1]
        if current.budget == budget:
            return []
        is_first, current.budget = current.budget is None, budget
        if not current.is_open:
            return self.requests.spare_roots(tree, iteration) if is_first else []
        chosen = self.choose(
            current.scores,
            current.allowed,
            current.parents,
            current.batch,
            tree.trajectories,
            self.branching,
            {tree.prompt.id: budget},
        )
        more = chosen[len(current.points) :]
        requests = self.requests.branches(more, iteration, tree.points)
        current.points += more
        return requests

    def begin_trees(self, trees: Sequence[Tree], iteration: int) -> None:
        """Begins the roots of trees for which nothing was begun; in lockstep, samples them."""
        bare = [tree for tree in trees if not tree.trajectories and not tree.begun]
        if self.in_lockstep and bare:
            roots = iter(self.sample_roots([tree.prompt for tree in bare], iteration))
            for tree in bare:
                tree.trajectories += islice(roots, self.branching.num_roots)
            return
        for tree in bare:
            tree.begun.append(self.begin_roots([tree.prompt], iteration))

    def finish_roots(self, trees: Sequence[Tree]) -> None:
        """Waits for the roots that were begun for trees."""
        for tree in trees:
            tree.trajectories += [root for begun in tree.begun for root in self.agent.finish(begun)]
            tree.begun.clear()
        self.sleep()

    def sample_roots(self, prompts: Sequence[Prompt], iteration: int) -> list[Trajectory]:
        """The trajectories that begin at some prompts, prompt by prompt."""
        return self.agent.run(self.requests.roots(prompts, iteration), self.sampling)

    def begin_roots(self, prompts: Sequence[Prompt], iteration: int) -> Any:
        """Begins them, for `Agent.finish` to end: they are sampled along with what is sampled next."""
        return self.agent.begin(self.requests.roots(prompts, iteration), self.sampling)

    def sleep(self) -> None:
        """Lets the engine give back memory, unless something is in flight."""
        self.agent.sleep(self.weights_follow)

    def _generator(self, use: str, roots: Sequence[Trajectory], *numbers: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, use, numbers[0], roots[0].prompt.id, *numbers[1:]))

    def _context(self, generator: torch.Generator, trajectories: Sequence[Trajectory]) -> BatchContext:
        return BatchContext(generator, trajectories, self.candidates.tokenizer, self.policy.log_probs)

    def _scorer_context(self, tree: Tree, iteration: int) -> BatchContext:
        numbers = (len(tree.rounds),) if tree.rounds else ()
        generator = self._generator("scorer", tree.trajectories, iteration, *numbers)
        return self._context(generator, list(tree.trajectories))

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

"""The order of sampling, branching and training within an iteration, and from one iteration to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, TypeVar

import torch

from appo.core.batch import TrajectoryBatch
from appo.core.trajectory import Prompt, Trajectory
from appo.distributed import comm
from appo.rollouts.collector import Collector
from appo.rollouts.data import IterationData, MiniBatch, mini_batches
from appo.rollouts.tree import Tree

Item = TypeVar("Item")


class IterationRunner:
    """Produces the mini-batches of one iteration after the other, each no earlier than it is asked for.

    With ``branching.when="iteration"`` all prompts are scored and branched before the first update; with
    ``"minibatch"`` those of a mini-batch when it is drawn, by the policy that the mini-batches before it have updated.
    With ``lag=1`` the roots were begun in the iteration before: those of the next one are begun as soon as the engine
    has the policy that samples both, and join the branches. An asynchronous agent goes on with them while the policy
    is trained; which version samples what is the same.

    Several processes take the same steps at the same time, each with prompts of its own.

    Args:
        collector: samples, branches and credits.
        sync_weights: brings the engine up to date with the policy; cheap if nothing has changed.
        num_minibatches: optimizer steps of one pass over an iteration.
        update_epochs: passes over the rollouts of an iteration.
        lag: iterations between the sampling of roots and their training.
        replacement_rounds: how often prompts without a gradient are replaced by others.
        needs_old_log_probs: whether the loss compares with the policy that begins the update.
    """

    def __init__(
        self,
        collector: Collector,
        sync_weights: Callable[[], None],
        num_minibatches: int,
        update_epochs: int = 1,
        lag: Literal[0, 1] = 0,
        replacement_rounds: int = 0,
        needs_old_log_probs: bool = True,
    ) -> None:
        self.collector = collector
        self.agent = collector.agent
        self.policy = collector.policy
        self.sync_weights = sync_weights
        self.num_minibatches = num_minibatches
        self.update_epochs = update_epochs
        self.num_parts = num_minibatches if collector.branching.when == "minibatch" else 1
        self.lag = lag
        self.replacement_rounds = replacement_rounds
        self.needs_old_log_probs = needs_old_log_probs
        self.pending: list[Trajectory] = []
        """Roots of the next iteration, prompt by prompt; after `join`, all that were begun."""
        self.collected: list[IterationData] = []
        """What the current iteration has collected so far, replaced prompts and their replacements included."""
        self.num_replaced = 0
        """Prompts of the current iteration in whose place others are trained."""
        self._num_sampled_tokens = 0
        self._begun: Any = None
        """Those of `pending` that are still in flight."""

    def run(
        self,
        iteration: int,
        prompts: Sequence[Prompt],
        next_prompts: Sequence[Prompt] = (),
        replacements: Iterable[Prompt] = (),
    ) -> Iterator[TrajectoryBatch]:
        """The mini-batches of an iteration.

        Args:
            iteration: counted from 0.
            prompts: of this iteration; with several processes, those of this one.
            next_prompts: of the next one, sampled along if there is a lag; empty if no iteration follows.
            replacements: prompts that may replace those without a gradient.
        """
        self.join()
        trees = self._trees(prompts)
        samples_roots = not all(tree.trajectories for tree in trees)
        self.pending, self.collected, self.num_replaced = [], [], 0
        others = iter(replacements)
        drawn: list[MiniBatch] = []
        for number in range(self.num_parts):
            with comm.phase("sampling"):
                batches = self._mini_batches(
                    iteration,
                    _part(trees, number, self.num_parts),
                    _part(next_prompts, number, self.num_parts) if self.lag else (),
                    others,
                    trees[len(trees) // self.num_parts :] if samples_roots and not number else (),
                )
            for batch in batches:
                if self.policy.reference_log_probs is not None:
                    with comm.phase("reference"):
                        batch.ref_log_probs = self.policy.reference_log_probs(batch.batch())
                drawn.append(batch)
                yield batch.batch()
        for _ in range(self.update_epochs - 1):
            yield from (batch.batch() for batch in drawn)

    def join(self) -> None:
        """Waits for what is sampled ahead: weights are exchanged, and `pending` is saved, with nothing in flight."""
        begun, self._begun = self._begun, None
        if begun is not None:
            self.pending += self._counted(self.agent.finish(begun))
            self.collector.sleep()

    def abandon(self) -> None:
        """Forgets what is sampled ahead, where the run ends before it is there."""
        self._begun = None

    def pop_num_sampled_tokens(self) -> int:
        """Tokens sampled since the last call; what a branch shares with its parent does not count."""
        number, self._num_sampled_tokens = self._num_sampled_tokens, 0
        return number

    def _mini_batches(
        self,
        iteration: int,
        trees: Sequence[Tree],
        next_prompts: Sequence[Prompt],
        others: Iterator[Prompt],
        later: Sequence[Tree],
    ) -> list[MiniBatch]:
        """Branches and credits some trees, and samples the roots of later ones and of the next iteration along."""
        self.join()
        self.sync_weights()
        self.collector.begin_trees([*trees, *later], iteration)
        if next_prompts:
            self._begun = self.collector.begin_roots(next_prompts, iteration + 1)
        data = self._collect(trees, iteration)
        if later:
            self._finish_roots(later)
        if not self.agent.is_asynchronous:
            self.join()
            # The policy that samples the next roots is still here; a later one scores them.
            self.pending = self._with_log_probs(self.pending)
        prompts = self._replaced(data.by_prompt(), others, iteration)
        batches = mini_batches(prompts, self.num_minibatches // self.num_parts)
        if self.needs_old_log_probs:
            # The first is trained by the policy as it is: unless it comes again, its own log-probs are the old ones.
            for batch in batches[1 if self.update_epochs == 1 else 0 :]:
                if not all(comm.all_gather(batch.is_evaluated)):
                    batch.evaluate(self.policy.evaluate)
        return batches

    def _collect(self, trees: Sequence[Tree], iteration: int) -> IterationData:
        data = self.collector.collect(trees, iteration)
        first = sum(len(part.trajectories) for part in self.collected)
        numbered = replace(data.batch, row=torch.arange(first, first + len(data.batch)))
        data = replace(data, batch=numbered)
        self._counted([trajectory for tree in trees for trajectory in tree.trajectories[tree.num_given :]])
        self.collected.append(data)
        return data

    def _finish_roots(self, trees: Sequence[Tree]) -> None:
        """Waits for roots of later mini-batches, which will be scored by a policy that those before have updated."""
        self.collector.finish_roots(trees)
        roots = self._counted([root for tree in trees for root in tree.trajectories])
        known = iter(self._with_log_probs(roots))
        for tree in trees:
            tree.num_given = len(tree.trajectories)
            tree.trajectories = list(islice(known, tree.num_given))

    def _replaced(self, prompts: list[MiniBatch], others: Iterator[Prompt], iteration: int) -> list[MiniBatch]:
        """Puts prompts that have a gradient in the place of those without one, as long as rounds and others last."""
        for _ in range(self.replacement_rounds):
            places = [place for place, prompt in enumerate(prompts) if not prompt.has_gradient]
            chosen = _chosen(others, len(places))
            if not chosen:
                break
            data = self._collect([Tree(prompt) for prompt in chosen], iteration)
            found = [prompt for prompt in data.by_prompt() if prompt.has_gradient][: len(places)]
            self.num_replaced += len(found)
            for place, prompt in zip(places, found, strict=False):
                prompts[place] = prompt
        return prompts

    def _with_log_probs(self, roots: Sequence[Trajectory]) -> list[Trajectory]:
        """The roots with `sampling_log_probs`, if a scorer compares policies; the policy must be the one that sampled.

        A likelihood gain then compares the trainer with itself: an engine rounds otherwise.
        """
        missing = [root for root in roots if root.sampling_log_probs is None]
        if not self.collector.compares_policies or not any(comm.all_gather(len(missing))):
            return list(roots)
        asked = self.policy.log_probs([root.token_ids for root in missing], [root.response_mask for root in missing])
        values = {
            id(root): torch.zeros(len(root)).masked_scatter(root.response_mask, log_probs.float())
            for root, log_probs in zip(missing, asked, strict=True)
        }
        return [replace(root, sampling_log_probs=values[id(root)]) if id(root) in values else root for root in roots]

    def _trees(self, prompts: Sequence[Prompt]) -> list[Tree]:
        """Those of the prompts, with roots if these were sampled ahead."""
        trees = [Tree(prompt) for prompt in prompts]
        by_prompt = {tree.prompt.id: tree for tree in trees}
        for root in self.pending:
            # Those of a checkpoint belong to all processes that there were.
            if root.prompt.id in by_prompt:
                by_prompt[root.prompt.id].trajectories.append(root)
        if not all(comm.all_gather(all(tree.trajectories for tree in trees))):
            return [Tree(prompt) for prompt in prompts]
        for tree in trees:
            tree.num_given = len(tree.trajectories)
        return trees

    def _counted(self, trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
        self._num_sampled_tokens += sum(trajectory.num_own_tokens for trajectory in trajectories)
        return trajectories


def _chosen(others: Iterator[Prompt], num: int) -> list[Prompt]:
    """This process's part of the next prompts in `others`, which all processes take from alike.

    Processes collect at the same time or not at all: one that has no use for a prompt takes one all the same.
    """
    wanted = comm.all_gather(num)
    if not any(wanted):
        return []
    if len(wanted) > 1:
        wanted = [max(1, number) for number in wanted]
    taken = list(islice(others, sum(wanted)))
    if len(wanted) > 1 and len(taken) < sum(wanted):
        return []
    start = sum(wanted[: comm.rank()])
    return taken[start : start + wanted[comm.rank()]]


def _part(items: Sequence[Item], number: int, of: int) -> Sequence[Item]:
    """Part `number` of `of` equal parts."""
    size = len(items) // of
    return items[number * size : (number + 1) * size]

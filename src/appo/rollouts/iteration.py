"""The order of sampling, branching and training within an iteration, and from one iteration to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import TypeVar

from appo.core.batch import TrainBatch
from appo.core.trajectory import Prompt, Trajectory
from appo.distributed import comm
from appo.rollouts.collector import Collector
from appo.rollouts.data import Measured, MiniBatch, PromptRows, Rollouts, mini_batches

Item = TypeVar("Item")


class IterationRunner:
    """Produces the mini-batches of one iteration after the other, each no earlier than it is asked for.

    With ``branch_when="iteration"`` all prompts are scored and branched before the first update; with ``"minibatch"``
    those of a mini-batch when it is drawn, by the policy that the mini-batches before it have updated. With ``lag=1``
    the trajectories were sampled in the iteration before, and those of the next one are sampled along with the
    branches. With `overlaps`, that begins as soon as the engine has the policy that samples both, and goes on while
    branches are chosen and the policy is trained; which version samples what is the same.

    Several processes take the same steps at the same time, each with prompts of its own.

    Args:
        collector: samples, branches and credits.
        sync_weights: brings the engine up to date with the policy; cheap if nothing has changed.
        num_minibatches: optimizer steps of one pass over an iteration.
        update_epochs: passes over the rollouts of an iteration.
        branch_when: `iteration` or `minibatch`.
        lag: 0 or 1.
        replacement_rounds: how often prompts that train nothing are replaced by others.
        needs_old_log_probs: whether the loss compares with the policy that begins the update.
        overlaps: whether trajectories of the next iteration are sampled while the current one trains; the collector's
            agent must have a thread of its own.
    """

    def __init__(
        self,
        collector: Collector,
        sync_weights: Callable[[], None],
        num_minibatches: int,
        update_epochs: int = 1,
        branch_when: str = "iteration",
        lag: int = 0,
        replacement_rounds: int = 0,
        needs_old_log_probs: bool = True,
        overlaps: bool = False,
    ) -> None:
        self.collector = collector
        self.sync_weights = sync_weights
        self.num_minibatches = num_minibatches
        self.update_epochs = update_epochs
        self.num_rounds = num_minibatches if branch_when == "minibatch" else 1
        self.lag = lag
        self.replacement_rounds = replacement_rounds
        self.needs_old_log_probs = needs_old_log_probs
        self.overlaps = overlaps
        self.pending: list[Trajectory] = []
        """Initial trajectories of the next iteration, prompt by prompt; after `settle`, all that were begun."""
        self.rounds: list[Rollouts] = []
        """What the current iteration has collected so far, replaced prompts and their replacements included."""
        self.num_replaced = 0
        """Prompts of the current iteration in whose place others are trained."""
        self._drawn: MiniBatch | None = None
        self._ahead: Future[list[Trajectory]] | None = None
        """Those of `pending` that are still being sampled."""

    def run(
        self,
        iteration: int,
        prompts: Sequence[Prompt],
        next_prompts: Sequence[Prompt] = (),
        spare: Iterable[Prompt] = (),
    ) -> Iterator[TrainBatch]:
        """The mini-batches of an iteration.

        Args:
            iteration: counted from 0.
            prompts: of this iteration; with several processes, those of this one.
            next_prompts: of the next one, sampled along if there is a lag; empty if no iteration follows.
            spare: prompts that may replace those that train nothing.
        """
        self.settle()
        initial = self._initial(iteration, prompts)
        self.pending, self.rounds, self.num_replaced = [], [], 0
        others = iter(spare)
        drawn: list[MiniBatch] = []
        for number in range(self.num_rounds):
            with comm.phase("sampling"):
                batches = self._round(
                    iteration,
                    _share(initial, number, self.num_rounds),
                    _share(next_prompts, number, self.num_rounds) if self.lag else (),
                    others,
                )
            for batch in batches:
                drawn.append(batch)
                yield self._draw(batch)
        for _ in range(self.update_epochs - 1):
            for batch in drawn:
                yield self._draw(batch)

    def _round(
        self, iteration: int, initial: Sequence[Trajectory], fresh: Sequence[Prompt], others: Iterator[Prompt]
    ) -> list[MiniBatch]:
        """Branches and credits some initial trajectories, and samples those of `fresh` along."""
        self.settle()
        self.sync_weights()
        starts = self.collector.initial_starts(fresh, iteration + 1)
        if starts and self.overlaps:
            self._ahead, starts = self.collector.sample_ahead(starts), []
        rollouts = self.collector.collect(initial, iteration, starts)
        self.rounds.append(rollouts)
        self.pending += rollouts.fresh
        trained = self._replaced(rollouts.by_prompt(), others, iteration)
        batches = mini_batches(trained, self.num_minibatches // self.num_rounds)
        if self.needs_old_log_probs:
            # The first is trained by the policy as it is: unless it comes again, its training step measures it.
            spared = 1 if self.update_epochs == 1 else 0
            self.collector.measure_rest([prompt for batch in batches[spared:] for prompt in batch.prompts])
        return batches

    def settle(self) -> None:
        """Waits for what is sampled ahead: weights are exchanged, and `pending` is saved, with nothing on its way."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            self.pending += self.collector.wait_for(ahead)

    def abandon(self) -> None:
        """Forgets what is sampled ahead, where the run ends before it is there."""
        self._ahead = None

    def _draw(self, batch: MiniBatch) -> TrainBatch:
        self._drawn = batch
        return batch.train_batch()

    def note(self, measured: Measured) -> None:
        """Takes up what the policy said of the rows of the mini-batch drawn last, which had not been measured."""
        assert self._drawn is not None
        self._drawn.note(measured)

    def _replaced(self, prompts: list[PromptRows], others: Iterator[Prompt], iteration: int) -> list[PromptRows]:
        """Puts prompts that have a signal in the place of those that have none, as long as rounds and others last."""
        for _ in range(self.replacement_rounds):
            places = [place for place, prompt in enumerate(prompts) if not prompt.has_signal]
            chosen = _chosen(others, len(places))
            if not chosen:
                break
            rollouts = self.collector.collect(self.collector.sample_initial(chosen, iteration), iteration)
            self.rounds.append(rollouts)
            found = [prompt for prompt in rollouts.by_prompt() if prompt.has_signal][: len(places)]
            self.num_replaced += len(found)
            for place, prompt in zip(places, found, strict=False):
                prompts[place] = prompt
        return prompts

    def _initial(self, iteration: int, prompts: Sequence[Prompt]) -> Sequence[Trajectory]:
        by_prompt: dict[str, list[Trajectory]] = {prompt.id: [] for prompt in prompts}
        for trajectory in self.pending:
            # Those of a checkpoint belong to all processes that there were.
            if trajectory.prompt.id in by_prompt:
                by_prompt[trajectory.prompt.id].append(trajectory)
        if all(comm.gather(all(by_prompt.values()))):
            return [trajectory for trajectories in by_prompt.values() for trajectory in trajectories]
        with comm.phase("sampling"):
            self.sync_weights()
            return self.collector.sample_initial(prompts, iteration)


def _chosen(others: Iterator[Prompt], num: int) -> list[Prompt]:
    """This process's part of the next prompts in `others`, which all processes take from alike.

    Processes collect at the same time or not at all: one that has no use for a prompt takes one all the same.
    """
    wanted = comm.gather(num)
    if not any(wanted):
        return []
    if len(wanted) > 1:
        wanted = [max(1, number) for number in wanted]
    taken = list(islice(others, sum(wanted)))
    if len(wanted) > 1 and len(taken) < sum(wanted):
        return []
    start = sum(wanted[: comm.rank()])
    return taken[start : start + wanted[comm.rank()]]


def _share(items: Sequence[Item], number: int, of: int) -> Sequence[Item]:
    """Part `number` of `of` equal parts."""
    size = len(items) // of
    return items[number * size : (number + 1) * size]

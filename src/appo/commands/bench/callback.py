"""Asks the questions of several benchmarks in the place of a test, with one engine."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L

from appo.commands.bench.answers import AnswerFolder
from appo.core.seeding import derive_seed
from appo.core.trajectory import Prompt, RewardResult, Trajectory
from appo.distributed import comm
from appo.engines import SamplingParams
from appo.rewards import RewardRunner
from appo.rollouts import AgentLoop, RolloutRequest
from appo.rollouts.agent import RequestBatch
from appo.training.callbacks import RolloutCallback
from appo.training.callbacks.common import parts_of
from appo.training.callbacks.evaluation import rollout_callback
from appo.training.callbacks.progress import EvaluationBar
from appo.training.checks import check_columns
from appo.training.datamodule import RolloutDataModule
from appo.training.options import EvaluationOptions

log = logging.getLogger(__name__)

Samples = Sequence[tuple[Trajectory, RewardResult]]
"""All samples of a question, with what the reward says of each."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that is about to be asked.

    Attributes:
        name: of its config.
        data: with its questions as test split.
        reward: says what is right.
        evaluation: how it is asked.
        folder: where the answers go.
        reward_options: of the reward, as its config has them.
    """

    name: str
    data: RolloutDataModule
    reward: RewardRunner
    evaluation: EvaluationOptions
    folder: AnswerFolder
    reward_options: Mapping[str, Any]

    @property
    def prompts(self) -> list[Prompt]:
        """Its questions, in their order."""
        return [prompt for batch in self.data.evaluation_batches("test") for prompt in batch]

    @property
    def is_answered(self) -> bool:
        """Whether nothing is left to ask."""
        return {prompt.id for prompt in self.prompts} <= {answered.id for answered in self.folder.read()}


class BenchCallback(L.Callback):
    """Asks what folders do not have yet; every question is recorded as soon as all its samples are rewarded.

    It takes engine and tools from the `RolloutCallback` of the same trainer.

    Args:
        benchmarks: one after the other.
        at_once: questions that are open at any time.
        shows_progress: draws a bar for each benchmark.
    """

    def __init__(self, benchmarks: Sequence[Benchmark], at_once: int, shows_progress: bool = True) -> None:
        self.benchmarks = benchmarks
        self.at_once = at_once
        self.shows_progress = shows_progress

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        parts_of(trainer, pl_module)[1].is_evaluated = True

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = parts_of(trainer, pl_module)
        rollout = rollout_callback(trainer)
        with comm.phase("bench"):
            rollout.sync_weights(module, data)
            known = comm.broadcast(self._known() if comm.rank() == 0 else {})
            for benchmark in self.benchmarks:
                self._ask(benchmark, known[benchmark.name], rollout)
        # The loop draws its batches all the same.
        buffer = data.evaluation_buffers["test"]
        buffer.fill([()] * buffer.num_batches)

    def _known(self) -> dict[str, set[str]]:
        """Ids of the questions that are answered, by benchmark; folders are marked before several processes write."""
        for benchmark in self.benchmarks:
            benchmark.folder.mark()
        return {each.name: {answered.id for answered in each.folder.read()} for each in self.benchmarks}

    def _ask(self, benchmark: Benchmark, known: Collection[str], rollout: RolloutCallback) -> None:
        prompts, loop = benchmark.prompts, rollout.sampler.agent
        assert isinstance(loop, AgentLoop)  # nothing is trained meanwhile
        missing = [prompt for prompt in prompts if prompt.id not in known]
        log.info("%s: %d questions, %d of them answered before", benchmark.name, len(prompts), len(known))
        if not missing:
            return
        rollout.sampler.describe_tools(benchmark.data)
        check_columns(missing[:1], benchmark.reward.reward)
        requests = (
            [
                RolloutRequest(prompt, derive_seed(rollout.seed, "test", prompt.id, number))
                for number in range(benchmark.evaluation.samples)
            ]
            for prompt in comm.shard(missing)
        )
        bar = EvaluationBar(benchmark.name, len(comm.shard(missing)), self.shows_progress and comm.rank() == 0)
        benchmark.reward.start()
        try:
            sampled = answered_questions(loop, requests, benchmark.evaluation.params, self.at_once)
            for questions in scored(sampled, benchmark.reward):
                benchmark.folder.append(questions, saves=bool(rollout.save_trajectories))
                bar.update([result.reward for samples in questions for _, result in samples], len(questions))
        finally:
            bar.close()
            benchmark.reward.stop()


def answered_questions(
    loop: AgentLoop, questions: Iterable[Sequence[RolloutRequest]], sampling: SamplingParams, at_once: int
) -> Iterator[list[Trajectory]]:
    """The samples of questions, each as soon as all of its own are there, in whichever order they end.

    Args:
        loop: with nothing in flight.
        questions: the requests for all samples of each.
        sampling: how tokens are drawn.
        at_once: questions that are open at any time: another one begins when one ends, so that the engine's batches
            stay full.
    """
    waiting = iter(questions)
    begun: list[RequestBatch] = []
    while True:
        while len(begun) < at_once and (requests := next(waiting, None)) is not None:
            begun.append(loop.begin(requests, sampling))
        if not begun:
            break
        loop.advance()
        for batch in [batch for batch in begun if batch.num_open == 0]:
            begun.remove(batch)
            yield loop.trajectories(batch)
    loop.engine.drain()


def scored(questions: Iterable[Sequence[Trajectory]], reward: RewardRunner) -> Iterator[list[Samples]]:
    """Rewards questions beside the sampling of further ones; yields those together that are rewarded meanwhile.

    Args:
        questions: all samples of each.
        reward: started; it may ask others, such as a judge, many at once.
    """
    queue, waiting = reward.queue(reward.num_workers), dict[int, Sequence[Trajectory]]()

    def rewarded(groups: Sequence[int]) -> Iterator[list[Samples]]:
        taken = [(waiting.pop(group), queue.take(group)) for group in groups]
        # A failure that ends the run may have ended other questions, and what is whole is kept.
        ends = [reward.on_failure == "error" and not all(isinstance(s, RewardResult) for s in own) for _, own in taken]
        for of_ended in (False, True):
            part = [each for each, has_ended in zip(taken, ends, strict=True) if has_ended is of_ended]
            trajectories = [trajectory for question, _ in part for trajectory in question]
            results = iter(reward.results([each for _, own in part for each in own], trajectories))
            if part:
                yield [[(trajectory, next(results)) for trajectory in question] for question, _ in part]

    try:
        for question in questions:
            waiting[queue.submit(question)] = question
            yield from rewarded(queue.finished())
        yield from rewarded(queue.finished(None))
    finally:
        queue.close()

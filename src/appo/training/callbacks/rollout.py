"""The callback that feeds the rollout buffer: weights to the engine, roots, branches, credit."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from time import perf_counter
from typing import Any, Literal

import lightning as L
from torch import Tensor

from appo.advantages import AdvantageEstimator, ProceduralAdvantage
from appo.distributed import comm
from appo.distributed.comm import RankError
from appo.distributed.fsdp import Meshes, amend
from appo.engines import Engine, HFEngine
from appo.monitoring.iteration_costs import IterationCosts, iteration_metrics, peak_memory
from appo.monitoring.rollout_metrics import rollout_metrics
from appo.monitoring.trajectory_files import trajectory_from_record, trajectory_record
from appo.rewards import AnswerReward
from appo.rollouts import Branching, CandidateFilter, Collector, IterationRunner, Limits, Mismatch, Policy
from appo.scorers import BranchingScore, as_scorer
from appo.tools import CallSyntax, TagSyntax
from appo.training.argument_types import AnyReward, AnyScorer, AnyTools
from appo.training.callbacks.common import leaves_files, parts_of, trajectory_file
from appo.training.callbacks.gain_check import warns_of_unchanged_policy
from appo.training.callbacks.recording import write_collected
from appo.training.callbacks.trajectory_table import log_trajectories
from appo.training.checks import (
    check_engine_device,
    check_positions,
    check_ranks,
    check_tensor_parallel,
    must_branch_together,
    warn_of_float32,
)
from appo.training.datamodule import RolloutDataModule
from appo.training.iterations import restart_iterations
from appo.training.module import APPOModule
from appo.training.options import EvaluationOptions, RewardOptions, SamplingOptions
from appo.training.sampler import Sampler
from appo.training.token_record import TokenRecord
from appo.training.trainer_checks import check_trainer

log = logging.getLogger(__name__)


class RolloutCallback(L.Callback):
    """Samples, branches and credits trajectories for every iteration.

    It starts what sampling takes, for `EvaluationCallback` too. In Python, plain functions stand for scorers, rewards
    and tools.

    Args:
        engine: samples continuations. `null`: `HFEngine`.
        scorer: where to branch.
        advantage: how rewards become advantages.
        reward: what a trajectory is worth.
        syntax: how calls and results are written.
        tools: what the agent may call.
        branching: how many branches there are, when they are chosen, and where they may leave.
        sampling: how trajectories are sampled, and how far ahead of their training.
        limits: what one trajectory may use.
        rewards: how rewards are computed.
        evaluation: how the policy is evaluated.
        stop_after_tokens: ends the training once so many tokens were sampled for it. `null`: trains to the trainer's
            end.
        save_trajectories: writes every trajectory of an iteration, with scores, to ``trajectories/`` in the run's
            folder; several processes write a file each. `brief` leaves out what the update made of each token.
        log_trajectories: trajectories of an iteration that go into the log, and as a table to loggers that have them:
            the best and the worst by turns, of the first process.
        rank_timeout_s: seconds that a process waits for the others of a run on several before it ends the run with an
            error: the longest that one may sample while another is ready. Until the training begins it is at least two
            minutes, or the time-out of a strategy that is given by its class.
        seed: of everything sampled.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        scorer: AnyScorer = BranchingScore(),  # noqa: B008 - these are frozen
        advantage: AdvantageEstimator = ProceduralAdvantage(),  # noqa: B008
        reward: AnyReward = AnswerReward(),  # noqa: B008
        syntax: CallSyntax = TagSyntax(),  # noqa: B008
        tools: AnyTools = (),
        branching: Branching = Branching(),  # noqa: B008
        sampling: SamplingOptions = SamplingOptions(),  # noqa: B008
        limits: Limits = Limits(),  # noqa: B008
        rewards: RewardOptions = RewardOptions(),  # noqa: B008
        evaluation: EvaluationOptions = EvaluationOptions(),  # noqa: B008
        stop_after_tokens: int | None = None,
        save_trajectories: bool | Literal["brief"] = True,
        log_trajectories: int = 0,
        rank_timeout_s: float = 1800.0,
        seed: int = 0,
    ) -> None:
        if not rank_timeout_s > 0.0:
            raise ValueError(f"rollout.rank_timeout_s must be positive, got {rank_timeout_s}")
        if log_trajectories < 0:
            raise ValueError(f"rollout.log_trajectories must not be negative, got {log_trajectories}")
        self.sampler = Sampler(engine or HFEngine(), tools, syntax, reward, sampling, limits, rewards)
        self.scorer, self.advantage = as_scorer(scorer), advantage
        self.branching, self.sampling = branching, sampling
        self.limits, self.truncated = limits, rewards.truncated
        self.evaluation = evaluation
        self.stop_after_tokens = stop_after_tokens
        self.save_trajectories = save_trajectories
        self.log_trajectories = log_trajectories
        self.rank_timeout_s = rank_timeout_s
        self.seed = seed
        self.num_generated_tokens = 0
        self._iteration: IterationRunner | None = None
        self._restored_pending: list[dict[str, Any]] = []
        self._has_warned, self._epoch_start = False, 0.0
        self.metrics: Mapping[str, float] = {}
        """What was logged of the last iteration, by name."""
        self._first_epoch = 0
        """Of this process, which may have resumed a run."""

    @property
    def iteration(self) -> IterationRunner:
        """Makes the mini-batches, from the beginning of the training on."""
        assert self._iteration is not None
        return self._iteration

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module, data = parts_of(trainer, pl_module)
        check_trainer(trainer)
        module.set_temperature(self.sampling.temperature)
        warn_of_float32(trainer.strategy.root_device, str(trainer.precision), module)
        check_ranks(trainer, module, data, self.scorer)
        check_engine_device(self.sampler.engine, trainer.strategy.root_device, trainer.world_size)
        amend(trainer.strategy)
        comm.join(trainer.world_size, self.rank_timeout_s, check_tensor_parallel(module))
        comm.watch(getattr(trainer.strategy.launcher, "procs", ()))
        # Everything is logged of all ranks: averaged over the default process group, it might be that of an engine.
        warnings.filterwarnings("ignore", "It is recommended to use `self.log.*sync_dist=True")
        check_positions(module, data, self.sampler.engine, self.limits)
        profiler = trainer.profiler  # type: ignore[attr-defined]  # set by the trainer, not declared
        self.sampler.start(module, data, profiler, trains=stage == "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._iteration is not None:
            self._iteration.abandon()
        self.sampler.stop()
        comm.leave()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(exception, RankError) and launcher is not None:
            # One that hangs does not hear Lightning's polite signal, and an engine may wait for it while it stops.
            launcher.kill(signal.SIGKILL)
        self.teardown(trainer, pl_module, "fit")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = parts_of(trainer, pl_module)
        module.token_record = TokenRecord() if self.save_trajectories is True and leaves_files(trainer) else None
        timer, has_reference = self.sampler.timer, module.loss.needs_reference
        collector = Collector(
            agent=self.sampler.agent,
            policy=Policy(
                timer.timed("log_probs", module.evaluate),
                timer.timed("reference", module.reference_log_probs) if has_reference else None,
            ),
            scorer=self.scorer,
            advantage=self.advantage,
            reward=self.sampler.reward,
            branching=self.branching,
            candidates=CandidateFilter(data.tokenizer, self.branching.exclude),
            sampling=self.sampling.params,
            seed=self.seed,
            timer=timer,
            truncated=self.truncated,
            in_lockstep=must_branch_together(module, self.sampler.engine),
            deterministic=self.sampling.deterministic,
            weights_follow=not self.sampling.replacement_rounds,  # prompts in the place of others are sampled at once
        )
        self._iteration = IterationRunner(
            collector,
            lambda: self.sync_weights(module, data),
            data.num_minibatches,
            data.update_epochs,
            self.sampling.lag,
            self.sampling.replacement_rounds,
            module.loss.needs_old_log_probs,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not before: a sharded checkpoint is restored after `on_fit_start`.
        comm.set_timeout()
        if (meshes := Meshes.of(pl_module.device_mesh)) is not None:
            for group in meshes.groups:
                comm.set_timeout(group)
        restart_iterations(trainer)
        self._first_epoch = trainer.current_epoch
        records, self._restored_pending = self._restored_pending, []
        self.iteration.pending = parts_of(trainer, pl_module)[1].with_columns([*map(trajectory_from_record, records)])
        # A run that had spent its budget before it was interrupted has only to write what it ends with.
        trainer.should_stop = trainer.should_stop or self.is_budget_spent

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _, data = parts_of(trainer, pl_module)
        number = trainer.current_epoch
        is_last = trainer.max_epochs == number + 1
        following = data.iteration_prompts(number + 1) if self.sampling.lag and not is_last else ()
        self.sampler.agent.pop_costs()
        self.sampler.timer.pop()
        self._epoch_start = perf_counter()
        replacements = data.replacement_prompts(number) if self.sampling.replacement_rounds else ()
        data.buffer.fill(self.iteration.run(number, data.iteration_prompts(number), following, replacements))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.sampler.check()
        self.sampler.timer.start("update")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self.sampler.check()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.sampler.timer.stop()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = parts_of(trainer, pl_module)
        collected = self.iteration.collected
        if self.save_trajectories and leaves_files(trainer):
            with self.sampler.timer("writing"):
                write_collected(trajectory_file(trainer, "iteration"), collected, module.token_record)
        if self.log_trajectories and trainer.is_global_zero:
            pairs = (zip(data.trajectories, data.results, strict=True) for data in collected)
            log_trajectories(trainer, chain.from_iterable(pairs), self.log_trajectories)
        self.iteration.join()
        with comm.phase("metrics"):
            metrics = rollout_metrics(collected)
            self._warn_of_unchanged_policy(metrics, trainer.current_epoch)
            named = {f"rollout/{name}": float(value) for name, value in metrics.items()} | self._costs(module)
            data.record_responses([trajectory for part in collected for trajectory in part.trajectories])
        self.metrics = named
        pl_module.log_dict(named)
        if self.is_budget_spent:
            log.info("rollout.stop_after_tokens is reached: %d tokens were sampled", self.num_generated_tokens)
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        pending: list[Any] = []
        if self._iteration is not None:
            self._iteration.join()
            pending = self._iteration.pending
        # The first process writes them for all, and any number of processes may read them.
        gathered = comm.gather_on_first([trajectory_record(trajectory) for trajectory in pending])
        return {
            "num_generated_tokens": self.num_generated_tokens,
            "worst_mismatch": asdict(self.sampler.worst_mismatch),
            "pending": [record for records in gathered for record in records],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_generated_tokens = state_dict["num_generated_tokens"]
        self._restored_pending = state_dict["pending"]
        self.sampler.met(Mismatch(**state_dict.get("worst_mismatch", {})))

    def sync_weights(self, module: APPOModule, data: RolloutDataModule) -> None:
        """As `Sampler.sync_weights`, once what is in flight has come to its end."""
        if self._iteration is not None:
            self._iteration.join()
        self.sampler.sync_weights(module, data)

    @property
    def is_budget_spent(self) -> bool:
        """Whether `stop_after_tokens` were sampled."""
        return self.stop_after_tokens is not None and self.num_generated_tokens >= self.stop_after_tokens

    def _costs(self, module: APPOModule) -> dict[str, float]:
        """What the iteration took, by the full names of metrics."""
        seconds, iteration_s = self.sampler.timer.pop(), perf_counter() - self._epoch_start
        seconds["other"] = iteration_s - sum(seconds.values())
        own = IterationCosts(
            seconds,
            iteration_s,
            self.iteration.pop_num_sampled_tokens(),
            self.sampler.agent.pop_costs(),
            module.pop_work(),
            self.sampler.worst_mismatch,
            self.iteration.num_replaced,
            peak_memory(module.device),
        )
        parts = comm.all_gather(own)
        self.num_generated_tokens += sum(part.num_tokens for part in parts)
        total = {"rollout/generated_tokens_total": float(self.num_generated_tokens)}
        return iteration_metrics(parts, module.device) | total

    def _warn_of_unchanged_policy(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Says once that the likelihood gain says nothing, and why."""
        by_gain = self.scorer.compares_policies and metrics.get("branches_made", 0.0) > 0.0
        if self._has_warned or not by_gain or (self.sampling.lag and epoch == self._first_epoch):
            return  # with a lag, nobody could sample the first roots ahead
        comes_between = self.sampling.lag > 0 or self.iteration.num_parts > 1
        noise = self.sampler.worst_mismatch.mean if self.sampler.overlaps else 0.0
        self._has_warned = warns_of_unchanged_policy(metrics, comes_between, noise)

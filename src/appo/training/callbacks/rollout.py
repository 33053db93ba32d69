"""The callback that feeds the rollout buffers: weights to the engine, trajectories, branches, credit."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import lightning as L
from torch import Tensor

from appo.advantages import AdvantageEstimator
from appo.core.seeding import derive_seed
from appo.core.trajectory import Prompt, Trajectory
from appo.distributed import comm
from appo.distributed.comm import RankError
from appo.distributed.fsdp import Layout, execute_nothing_on_resume
from appo.engines import Engine, SamplingParams
from appo.monitoring.evaluation_metrics import Evaluated
from appo.monitoring.iteration_costs import IterationCosts, iteration_metrics
from appo.monitoring.rollout_metrics import rollout_metrics
from appo.monitoring.trajectory_files import trajectory_from_record, trajectory_record
from appo.policy.text import encode
from appo.prompts import Split
from appo.rewards import OnFailure, Reward, RewardRunner
from appo.rollouts import (
    DEFAULT_EXCLUSIONS,
    Agent,
    AgentLimits,
    AgentLoop,
    BranchRules,
    CandidateFilter,
    Collector,
    Exclusion,
    IterationRunner,
    SamplingThread,
    Start,
    Stopwatch,
    ToolRules,
    WeightProbe,
    WeightSync,
    check_exclusions,
    default_tolerance,
)
from appo.scorers import Scorer
from appo.tools import CallSyntax, ToolProvider, ToolRunner
from appo.training.callbacks.common import parts_of, run_folder
from appo.training.callbacks.recording import write_evaluated, write_metrics, write_rollouts
from appo.training.checks import can_overlap, check_positions, check_precision, check_ranks, check_tensor_parallel
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule
from appo.training.tool_checks import check_tools

log = logging.getLogger(__name__)

_NO_SPREAD = 1e-3
"""Standard deviation of log-ratios, in nats, below which they are the noise of two implementations of one policy."""

_PROBE_TEXT = "The weights that sample must be the weights that are trained: 3 + 4 = 7."

_PROBE_TOKENS = 16


class RolloutCallback(L.Callback):
    """Samples, branches and credits trajectories for every iteration, and evaluates the policy.

    Args:
        engine: samples continuations.
        scorer: where to branch.
        advantage: how outcomes become credit.
        reward: what a trajectory is worth.
        syntax: how calls and results are written.
        tools: what the agent may call.
        num_trajectories: of a prompt, branches included.
        num_initial: trajectories of a prompt that are sampled before branching.
        branch_when: `iteration` scores and branches all prompts before the first update; `minibatch` those of a
            mini-batch when it is drawn, with the policy that the mini-batches before it have updated.
        lag: 0 draws trajectories in the iteration that sampled them; 1 trains on those of the iteration before and
            samples the next ones together with the branches, so that the policy has changed for every prompt.
        overlap: with a lag of 1, goes on sampling the next trajectories in a thread of its own while the policy is
            trained; the engine must sample elsewhere, as `VLLMServerEngine` does. None does so where it can.
        selection: `per_prompt` pools the branches over a prompt's trajectories, `per_trajectory` gives each the same
            number.
        split: `keep` shares the chosen token with the branch, `resample` draws it anew.
        fallback: branches at positions that the scorer does not prefer when the preferred ones do not suffice.
        repeat: branches several times from a position when even those do not suffice.
        min_remaining_tokens: fewest tokens that a branch must have left.
        branch_tool_calls: whether branches call tools, as they must for their outcome to say something of their parent;
            False ends a branch at its first call, which is what the authors' release comes to.
        exclude: tokens that are no branch points: `whitespace` alone, `punctuation` and symbols alone, `special` ones,
            those that touch `tags`, the inside of tool `calls`. The last token of a trajectory never is one.
        replacement_rounds: how often the prompts of an iteration that train nothing, since their rewards do not differ,
            are replaced by others; those that are left then stay. 0 replaces none. Replacements are sampled by the
            policy as it is, whatever `branch_when` and `lag` say.
        temperature: divides the logits, in sampling and in the loss alike.
        top_p: smallest share of probability that the kept tokens hold together; 1 keeps all.
        top_k: number of most likely tokens kept; 0 keeps all.
        max_response_tokens: of a trajectory, tool output included.
        max_tool_calls: of a trajectory, over all tools.
        max_result_tokens: of one tool's answer; the rest is cut.
        max_parallel_tools: tool calls that run at once.
        tool_rules: limits of single tools, and what becomes of calls beyond a limit and of repeated ones.
        tool_attempts: at a call whose tool breaks, as by an error of the network; what a tool answers, be it a failure
            or nothing, is not tried again.
        reward_workers: trajectories that are judged at once.
        reward_timeout_s: seconds that judging one of them may take.
        on_reward_failure: `error` ends the run when a trajectory cannot be judged; `zero` gives it 0 and goes on, and
            metrics count it.
        max_mismatch: largest distance, in nats, of a log-prob of the engine from the trainer's that a probe after each
            update of the weights may find; none takes 1e-4 in float32, 0.1 in float16 and 0.5 in bfloat16.
        evaluation_samples: trajectories of an evaluation prompt.
        evaluation_temperature: of these; 0 is greedy.
        stop_after_tokens: ends the training once so many tokens were sampled for it; none trains to the trainer's end.
        save_trajectories: writes every trajectory of an iteration, with scores, to ``trajectories/`` in the run's
            folder; several processes write a file each.
        rank_timeout_s: seconds that a process waits for the others of a run on several before it ends the run with an
            error: the longest that one may sample while another is ready. Until the training begins it is at least two
            minutes, or the time-out of a strategy that is given by its class.
        seed: of everything sampled.
    """

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        advantage: AdvantageEstimator,
        reward: Reward,
        syntax: CallSyntax,
        tools: tuple[ToolProvider, ...] = (),
        num_trajectories: int = 16,
        num_initial: int = 8,
        branch_when: Literal["iteration", "minibatch"] = "iteration",
        lag: Literal[0, 1] = 0,
        overlap: bool | None = None,
        selection: Literal["per_prompt", "per_trajectory"] = "per_prompt",
        split: Literal["keep", "resample"] = "keep",
        fallback: bool = True,
        repeat: bool = False,
        min_remaining_tokens: int = 1,
        branch_tool_calls: bool = True,
        exclude: tuple[Exclusion, ...] = DEFAULT_EXCLUSIONS,
        replacement_rounds: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_response_tokens: int = 2048,
        max_tool_calls: int = 3,
        max_result_tokens: int = 512,
        max_parallel_tools: int = 32,
        tool_rules: ToolRules = ToolRules(),  # noqa: B008 - frozen
        tool_attempts: int = 1,
        reward_workers: int = 16,
        reward_timeout_s: float = 120.0,
        on_reward_failure: OnFailure = "error",
        max_mismatch: float | None = None,
        evaluation_samples: int = 1,
        evaluation_temperature: float = 0.0,
        stop_after_tokens: int | None = None,
        save_trajectories: bool = True,
        rank_timeout_s: float = 1800.0,
        seed: int = 0,
    ) -> None:
        for name, value in (
            ("max_response_tokens", max_response_tokens),
            ("max_result_tokens", max_result_tokens),
            ("evaluation_samples", evaluation_samples),
            ("temperature", temperature),
            ("rank_timeout_s", rank_timeout_s),
        ):
            if not value > 0:
                raise ValueError(f"rollout.{name} must be positive, got {value}")
        if max_mismatch is not None and not max_mismatch > 0:
            raise ValueError(f"rollout.max_mismatch must be positive, got {max_mismatch}")
        if replacement_rounds < 0:
            raise ValueError(f"rollout.replacement_rounds must not be negative, got {replacement_rounds}")
        check_exclusions(exclude)
        self.exclude = exclude
        self.replacement_rounds = replacement_rounds
        self.rules = BranchRules(
            num_initial,
            num_trajectories - num_initial,
            selection,
            split,
            fallback,
            repeat,
            min_remaining_tokens,
            branch_tool_calls,
        )
        self.engine = engine
        self.scorer = scorer
        self.advantage = advantage
        self.reward = RewardRunner(reward, reward_workers, reward_timeout_s, on_reward_failure)
        self.syntax = syntax
        self.runner = ToolRunner(tools, max_parallel=max_parallel_tools, attempts=tool_attempts)
        self.branch_when = branch_when
        self.lag = lag
        self.overlaps = can_overlap(overlap, lag, engine)
        self.sampling = SamplingParams(temperature, top_p, top_k)
        self.limits = AgentLimits(max_response_tokens, max_tool_calls, max_result_tokens, tool_rules)
        self.max_mismatch = max_mismatch
        self.evaluation_samples = evaluation_samples
        self.evaluation_sampling = SamplingParams(evaluation_temperature, top_p, top_k)
        self.stop_after_tokens = stop_after_tokens
        self.save_trajectories = save_trajectories
        self.rank_timeout_s = rank_timeout_s
        self.seed = seed
        self.stopwatch = Stopwatch()
        self.num_generated_tokens = 0
        self._sync: WeightSync | None = None
        self._agent: Agent | None = None
        self._iteration: IterationRunner | None = None
        self._restored_pending: list[dict[str, Any]] = []
        self._has_warned = False
        self._epoch_start = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        module, data = parts_of(trainer, pl_module)
        check_precision(str(trainer.precision))
        check_ranks(trainer, module, data, self.scorer)
        execute_nothing_on_resume(trainer.strategy)
        comm.join(trainer.world_size, self.rank_timeout_s, check_tensor_parallel(module))
        comm.watch(getattr(trainer.strategy.launcher, "procs", ()))
        # Everything is logged of all ranks: averaged over the default process group, it might be that of an engine.
        warnings.filterwarnings("ignore", "It is recommended to use `self.log.*sync_dist=True")
        check_positions(module, data, self.engine, self.limits)
        self.reward.start()
        self.runner.start()
        if self.syntax.describes_tools and data.tool_schemas is None:
            # Servers of tools say only now which they have.
            data.describe_tools(self.runner.schemas())
        check_tools(data.tokenizer, self.syntax, self.runner, self.limits)
        self.engine.start(module.policy_folder)
        self._sync = None
        self.stopwatch = Stopwatch(trainer.profiler)  # type: ignore[attr-defined]  # set by the trainer, not declared
        overlaps = self.overlaps and stage == "fit"
        # Fast tokenizers refuse to serve two threads at once.
        tokenizer = deepcopy(data.tokenizer) if overlaps else data.tokenizer
        loop = AgentLoop(self.engine, tokenizer, self.runner, self.syntax, self.limits)
        self._agent = SamplingThread(loop) if overlaps else loop

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(self._agent, SamplingThread):
            self._agent.stop()
        if self._iteration is not None:
            self._iteration.abandon()
        self.engine.stop()
        self.runner.stop()
        self.reward.stop()
        comm.leave()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")
        launcher = trainer.strategy.launcher
        if isinstance(exception, RankError) and launcher is not None:
            # One that hangs does not hear the polite signal that Lightning has sent to those it started.
            launcher.kill(signal.SIGKILL)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = parts_of(trainer, pl_module)
        assert self._agent is not None
        collector = Collector(
            agent=self._agent,
            measure=module.measure,
            measure_reference=module.measure_reference if module.loss.needs_reference else None,
            scorer=self.scorer,
            advantage=self.advantage,
            reward=self.reward,
            rules=self.rules,
            candidates=CandidateFilter(data.tokenizer, self.exclude),
            sampling=self.sampling,
            seed=self.seed,
            stopwatch=self.stopwatch,
        )
        self._iteration = IterationRunner(
            collector,
            lambda: self._sync_weights(module, data),
            data.num_minibatches,
            data.update_epochs,
            self.branch_when,
            self.lag,
            self.replacement_rounds,
            module.loss.needs_old_log_probs,
            self.overlaps,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not before: a sharded checkpoint is restored after `on_fit_start`.
        assert self._iteration is not None
        comm.wait_no_longer()
        if (layout := Layout.of(pl_module.device_mesh)) is not None:
            for group in layout.groups:
                comm.wait_no_longer(group)
        self._iteration.pending = [trajectory_from_record(record) for record in self._restored_pending]
        self._restored_pending = []
        # A run that had spent its budget before it was interrupted has only to write what it ends with.
        trainer.should_stop = trainer.should_stop or self._is_budget_spent

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _, data = parts_of(trainer, pl_module)
        assert self._iteration is not None
        number = trainer.current_epoch
        is_last = trainer.max_epochs == number + 1
        following = data.iteration_prompts(number + 1) if self.lag and not is_last else ()
        assert self._agent is not None
        self._agent.take_costs()
        self.stopwatch.take()
        self._epoch_start = perf_counter()
        spare = data.spare_prompts(number) if self.replacement_rounds else ()
        data.buffer.fill(self._iteration.run(number, data.iteration_prompts(number), following, spare))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._check_sampling()
        self.stopwatch.start("update")

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._check_sampling()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stopwatch.stop()
        if "measured" in outputs:
            assert self._iteration is not None
            self._iteration.note(outputs["measured"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = parts_of(trainer, pl_module)
        assert self._iteration is not None
        rounds = self._iteration.rounds
        if self.save_trajectories:
            with self.stopwatch("writing"):
                write_rollouts(_trajectory_file(trainer, "iteration"), rounds)
        self._iteration.settle()
        with comm.phase("metrics"):
            metrics = rollout_metrics(rounds)
            self._warn_without_spread(metrics)
            named = {f"rollout/{name}": float(value) for name, value in metrics.items()} | self._costs(module)
            data.note_responses([trajectory for part in rounds for trajectory in part.trajectories])
        pl_module.log_dict(named)
        if self._is_budget_spent:
            log.info("rollout.stop_after_tokens is reached: %d tokens were sampled", self.num_generated_tokens)
            trainer.should_stop = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "validation", "validation")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test", "test")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test", "predict")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._write_metrics(trainer, "validation")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write_metrics(trainer, "test")

    def state_dict(self) -> dict[str, Any]:
        pending: list[Trajectory] = []
        if self._iteration is not None:
            self._iteration.settle()
            pending = self._iteration.pending
        # The first process writes them for all, and any number of processes may read them.
        gathered = comm.gather_on_first([trajectory_record(trajectory) for trajectory in pending])
        return {
            "num_generated_tokens": self.num_generated_tokens,
            "pending": [record for records in gathered for record in records],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_generated_tokens = state_dict["num_generated_tokens"]
        self._restored_pending = state_dict["pending"]

    @property
    def _is_budget_spent(self) -> bool:
        return self.stop_after_tokens is not None and self.num_generated_tokens >= self.stop_after_tokens

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split, stage: str) -> None:
        module, data = parts_of(trainer, pl_module)
        path = _trajectory_file(trainer, stage)
        batches = self._evaluated(module, data, data.evaluation_batches(split), stage)
        data.evaluation_buffers[split].fill(write_evaluated(path, batches) if self.save_trajectories else batches)

    def _evaluated(
        self, module: APPOModule, data: RolloutDataModule, batches: Sequence[Sequence[Prompt]], stage: str
    ) -> Iterator[Evaluated]:
        assert self._agent is not None
        for prompts in batches:
            with comm.phase(stage), self.stopwatch("evaluation"):
                if self._iteration is not None:
                    self._iteration.settle()
                self._sync_weights(module, data)
                starts = [
                    Start(prompt, derive_seed(self.seed, stage, prompt.id, number))
                    for prompt in comm.share(prompts)
                    for number in range(self.evaluation_samples)
                ]
                trajectories = self._agent.run(starts, self.evaluation_sampling)
                evaluated = list(zip(trajectories, self.reward(trajectories), strict=True))
            yield evaluated

    def _write_metrics(self, trainer: L.Trainer, split: str) -> None:
        if trainer.is_global_zero:
            write_metrics(run_folder(trainer) / f"{split}.json", trainer.callback_metrics)

    def _sync_weights(self, module: APPOModule, data: RolloutDataModule) -> None:
        """Brings the engine to the policy's version, and makes sure that it arrived there."""
        if self._sync is None:
            text = tuple(encode(data.tokenizer, _PROBE_TEXT))[:_PROBE_TOKENS]
            probe = WeightProbe(self.engine, module.measure, text, self.sampling.temperature)
            tolerance = self.max_mismatch or default_tolerance(self.engine, module.compute_dtype)
            self._sync = WeightSync(self.engine, module.named_weights, probe, tolerance)
        with self.stopwatch("weights"), comm.phase("weights"):
            self._sync(module.policy_version)

    def _check_sampling(self) -> None:
        """Ends the run as soon as sampling beside it has failed."""
        if isinstance(self._agent, SamplingThread):
            self._agent.check()

    def _costs(self, module: APPOModule) -> dict[str, float]:
        """What the iteration took, by the full names of metrics."""
        assert self._agent is not None
        assert self._iteration is not None
        assert self._sync is not None
        seconds, iteration_s = self.stopwatch.take(), perf_counter() - self._epoch_start
        seconds["other"] = iteration_s - sum(seconds.values())
        own = IterationCosts(
            seconds,
            iteration_s,
            self._iteration.collector.take_num_sampled_tokens(),
            self._agent.take_costs(),
            module.take_work(),
            self._sync.largest_difference,
            self._iteration.num_replaced,
        )
        parts = comm.gather(own)
        self.num_generated_tokens += sum(part.num_tokens for part in parts)
        total = {"rollout/generated_tokens_total": float(self.num_generated_tokens)}
        return iteration_metrics(parts, module.device) | total

    def _warn_without_spread(self, metrics: Mapping[str, float]) -> None:
        spread = metrics.get("log_ratio_std", _NO_SPREAD)
        if spread < _NO_SPREAD and self.rules.num_branches and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the policy has not changed between sampling and branching (spread of log-ratios %.1e nats), so the "
                "likelihood gain says nothing and scores rest on entropy alone; see rollout.branch_when, rollout.lag",
                spread,
            )


def _trajectory_file(trainer: L.Trainer, stage: str) -> Path:
    of_rank = f"_rank_{comm.rank():05d}" if comm.num_ranks() > 1 else ""
    return run_folder(trainer) / f"trajectories/{stage}_{trainer.current_epoch:05d}{of_rank}.jsonl.zst"

"""The callback that evaluates the policy, in a run of its own or while it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L

from appo.core.seeding import derive_seed
from appo.core.trajectory import Prompt, Trajectory
from appo.distributed import comm
from appo.monitoring.evaluation_metrics import Evaluated, EvaluationMetrics
from appo.prompts import Split
from appo.rewards import RewardRunner
from appo.rollouts import RolloutRequest
from appo.training.callbacks.common import callbacks_of, leaves_files, parts_of, run_folder, trajectory_file
from appo.training.callbacks.recording import write_evaluated, write_metrics
from appo.training.callbacks.rollout import RolloutCallback
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule


class EvaluationCallback(L.Callback):
    """Samples, rewards and measures the trajectories of validation and test, and samples those of prediction.

    It takes engine, tools and reward from the `RolloutCallback` of the same trainer, and its options from there:
    `rollout.evaluation`.
    """

    def __init__(self) -> None:
        self._metrics = EvaluationMetrics()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        _, data = parts_of(trainer, pl_module)
        data.is_evaluated = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._fill(trainer, pl_module, "validation", "validation", batches)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fill(trainer, pl_module, "test", "test", trainer.num_test_batches)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fill(trainer, pl_module, "test", "predict", trainer.num_predict_batches)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Evaluated,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._metrics.update(batch)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(pl_module, "validation")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(pl_module, "test")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            _write(trainer, "validation")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _write(trainer, "test")

    def _log(self, pl_module: L.LightningModule, stage: str) -> None:
        with comm.phase(stage):
            values = self._metrics.compute()
        pl_module.log_dict({f"{stage}/{name}": value for name, value in values.items()})
        self._metrics.reset()

    def _fill(
        self, trainer: L.Trainer, pl_module: L.LightningModule, split: Split, stage: str, limits: Sequence[float]
    ) -> None:
        """Hands the evaluation's batches to the buffer that the loader reads, each sampled when it is drawn.

        Args:
            trainer: of the run.
            pl_module: that is evaluated.
            split: of the questions.
            stage: name of the evaluation.
            limits: how many batches the trainer draws, of its one loader; none if it has no loader.
        """
        module, data = parts_of(trainer, pl_module)
        rollout = rollout_callback(trainer)
        num_drawn = int(sum(limits))
        if num_drawn == 0:
            return
        prompts = data.evaluation_batches(split)[:num_drawn]
        batches = _evaluated(rollout, module, data, prompts, stage)
        if rollout.save_trajectories and leaves_files(trainer):
            batches = write_evaluated(trajectory_file(trainer, stage), batches)
        data.evaluation_buffers[split].fill(batches, num_drawn)


def _evaluated(
    rollout: RolloutCallback,
    module: APPOModule,
    data: RolloutDataModule,
    batches: Sequence[Sequence[Prompt]],
    stage: str,
) -> Iterator[Evaluated]:
    for prompts in batches:
        with comm.phase(stage):
            rollout.sync_weights(module, data)
            with rollout.sampler.timer("evaluation", undivided=True):
                requests = [
                    RolloutRequest(prompt, derive_seed(rollout.seed, stage, prompt.id, number))
                    for prompt in comm.shard(prompts)
                    for number in range(rollout.evaluation.samples)
                ]
                trajectories = rollout.sampler.agent.run(requests, rollout.evaluation.params)
                evaluated = _scored(trajectories, rollout.sampler.reward)
        yield evaluated


def _scored(trajectories: Sequence[Trajectory], reward: RewardRunner) -> Evaluated:
    """Rewards trajectories, but for those of prompts without an accepted answer."""
    results = iter(reward([trajectory for trajectory in trajectories if trajectory.prompt.answers]))
    return [(trajectory, next(results) if trajectory.prompt.answers else None) for trajectory in trajectories]


def rollout_callback(trainer: L.Trainer) -> RolloutCallback:
    """The callback of a trainer that samples.

    Raises:
        ValueError: if there is none.
    """
    for callback in callbacks_of(trainer, RolloutCallback):
        return callback
    raise ValueError("trainer.callbacks must hold a RolloutCallback beside EvaluationCallback, got none")


def _write(trainer: L.Trainer, split: str) -> None:
    if trainer.is_global_zero and leaves_files(trainer):
        write_metrics(run_folder(trainer) / f"{split}.json", trainer.callback_metrics)

"""Runs a pilot study in the place of a test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import lightning as L
import torch
from torch import nn

from appo.commands.pilot.options import StudyOptions
from appo.commands.pilot.records import StudyFolder
from appo.commands.pilot.sampling import Study
from appo.commands.pilot.scoring import ScorerSet
from appo.core.batch import TrajectoryBatch
from appo.core.seeding import derive_seed
from appo.core.trajectory import Prompt
from appo.distributed import comm
from appo.policy.evaluation import evaluate_batch
from appo.policy.loading import load_policy
from appo.policy.log_probs import PolicyLogProbs
from appo.prompts import Split
from appo.rollouts import Policy
from appo.rollouts.data import Evaluate
from appo.training.callbacks.common import parts_of
from appo.training.callbacks.evaluation import rollout_callback
from appo.training.datamodule import RolloutDataModule
from appo.training.module import APPOModule

log = logging.getLogger(__name__)

STAGES: dict[Split, str] = {"train": "fit", "validation": "validate", "test": "test"}
"""Stage of a trainer whose data has the questions of a split."""


class PilotCallback(L.Callback):
    """Measures the questions that a folder does not have yet.

    It takes engine, tools and reward from the `RolloutCallback` of the same trainer.

    Args:
        options: how much is measured.
        folder: where it goes.
    """

    def __init__(self, options: StudyOptions, folder: StudyFolder) -> None:
        self.options = options
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        _, data = parts_of(trainer, pl_module)
        data.setup(STAGES[self.options.split])
        data.is_evaluated = True

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._run(trainer, pl_module, "test")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._run(trainer, pl_module, "validation")

    def _run(self, trainer: L.Trainer, pl_module: L.LightningModule, loop: Split) -> None:
        module, data = parts_of(trainer, pl_module)
        rollout = rollout_callback(trainer)
        with comm.phase("pilot"):
            rollout.sync_weights(module, data)
            policy = Policy(module.evaluate)
            study = Study(
                rollout.sampler.agent,
                rollout.sampler.reward,
                policy,
                None if self.options.later_policy is None else later_evaluation(self.options.later_policy, module),
                ScorerSet(rollout.scorer, self.options.influence, policy, data.tokenizer, rollout.seed),
                rollout.sampling.params,
                rollout.branching.tool_calls,
                self.options,
                rollout.seed,
            )
            self._measure(study, questions_of(data, self.options, rollout.seed))
        # The loop draws its batches all the same.
        buffer = data.evaluation_buffers[loop]
        buffer.fill([()] * buffer.num_batches)

    def _measure(self, study: Study, prompts: Sequence[Prompt]) -> None:
        known = {question.id for question in self.folder.read()}
        if known:
            log.info("%d of %d questions are there already", len(known), len(prompts))
        size = self.options.at_once
        for first in range(0, len(prompts), size):
            missing = [prompt for prompt in prompts[first : first + size] if prompt.id not in known]
            if not missing:
                continue
            started = perf_counter()
            measured = study(missing)
            self.folder.append(measured)
            log.info(
                "%d of %d questions: %d continuations, %.0f s",
                first + len(missing),
                len(prompts),
                sum(question.num_continuations for question in measured),
                perf_counter() - started,
            )


def later_evaluation(policy: str, module: APPOModule) -> Evaluate:
    """Evaluates rows once more, by what a policy has become; the first evaluation is that of the one that sampled.

    Args:
        policy: Hugging Face folder or name.
        module: with the policy that samples, whose settings hold.
    """
    model = load_policy(policy, module.dtype_name, attention=module.attention)
    nn.Module.to(model, module.device)
    log_probs = PolicyLogProbs(model, module.temperature)

    def evaluate(batch: TrajectoryBatch) -> TrajectoryBatch:
        precision = module.trainer.precision_plugin.forward_context
        values = evaluate_batch(log_probs, batch, module.max_tokens_per_microbatch, module.device, precision)
        sampled = replace(batch, sampling_log_probs=batch.old_log_probs)
        return sampled.evaluated(torch.arange(len(batch)), *values, module.policy_version + 1)

    return evaluate


def questions_of(data: RolloutDataModule, options: StudyOptions, seed: int) -> list[Prompt]:
    """The questions of a study: the first ones of a seeded order, so that a larger study begins with a smaller one."""
    prompts = [prompt for batch in data.evaluation_batches(options.split) for prompt in batch]
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(derive_seed(seed, "pilot", "order")))
    if len(prompts) < options.questions:
        log.warning("the split %s has %d questions, not %d", options.split, len(prompts), options.questions)
    return [prompts[number] for number in order[: options.questions].tolist()]

"""The LightningModule: policy and loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from appo.core.batch import TrajectoryBatch
from appo.distributed import comm
from appo.distributed.fsdp import Meshes, Sharding, clip_gradients, is_sharded
from appo.distributed.micro_batches import tensor_parallel_batch
from appo.losses import Loss, ProceduralLoss
from appo.monitoring.evaluation_metrics import Evaluated
from appo.policy.evaluation import evaluate_batch
from appo.policy.flops import PolicyFlops, TrainedWork
from appo.policy.loading import compile_layers, load_policy, load_sharded_policy
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.lora import Adapter, LoRA
from appo.policy.noise import remove_noise
from appo.policy.saving import named_weights, temporary_folder
from appo.training.argument_types import AnyPolicy
from appo.training.gradient import accumulate_gradient
from appo.training.iterations import end_iteration
from appo.training.resuming import check_resumed, mark_checkpoint
from appo.training.schedules import apply_options, with_scheduler
from appo.training.token_record import TokenRecord

log = logging.getLogger(__name__)


class APPOModule(L.LightningModule):
    """A policy that is trained on rollouts.

    Args:
        policy: Hugging Face model folder or name of the initial policy. In Python, also ``(model, tokenizer)``: the
            model is written to a folder, which engines and processes read it from while this module is there.
        loss: what an optimizer step minimizes.
        optimizer: over all parameters that are trained.
        scheduler: of the learning rate, stepped after every optimizer step. `null`: constant.
        reference: Hugging Face model folder or name of the frozen reference, loaded only if the loss needs one.
            `null`: `policy`, which `lora` has in memory already.
        max_tokens_per_microbatch: tokens that go through the model at once, padding not included; those that rows
            begin with alike count once where the model can compute them once; a longer row goes alone.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them as they are.
        dtype: of the parameters: `float32`, `bfloat16` or `auto` for that of the checkpoint.
        gradient_checkpointing: recomputes activations in the backward pass, which saves memory.
        attention: implementation of transformers, such as `flash_attention_2`, which needs its package and a GPU.
            `null`: what transformers takes.
        lora: trains an adapter beside the policy's weights. `null`: trains the weights.
        compile: compiles decoder layers with `torch.compile`, for sequences of all lengths at once.
        sharding: how the policy is sharded if `trainer.strategy` does so.
    """

    def __init__(
        self,
        policy: AnyPolicy,
        loss: Loss = ProceduralLoss(),  # noqa: B008 - these are frozen
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-6),
        scheduler: LRSchedulerCallable | None = None,
        reference: str | None = None,
        max_tokens_per_microbatch: int = 16384,
        max_grad_norm: float = 1.0,
        dtype: Literal["float32", "bfloat16", "auto"] = "float32",
        gradient_checkpointing: bool = False,
        attention: str | None = None,
        lora: LoRA | None = None,
        compile: bool = False,
        sharding: Sharding = Sharding(),  # noqa: B008
    ) -> None:
        super().__init__()
        if max_tokens_per_microbatch < 1:
            raise ValueError(f"model.max_tokens_per_microbatch must be positive, got {max_tokens_per_microbatch}")
        if max_grad_norm < 0.0:
            raise ValueError(f"model.max_grad_norm must not be negative, got {max_grad_norm}")
        if lora is not None:
            lora.check_installed()
        self.tokenizer: PreTrainedTokenizerBase | None = None
        """That of the policy, if it was given as an object."""
        if isinstance(policy, tuple):
            model, self.tokenizer = policy
            policy = temporary_folder(self, model, self.tokenizer)
        self.policy_folder = str(policy)
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.reference_folder = reference or self.policy_folder
        self.temperature = 1.0
        """Divides the logits before log-probs are taken."""
        self.max_tokens_per_microbatch = max_tokens_per_microbatch
        self.max_grad_norm = max_grad_norm
        self.dtype_name = dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.attention = attention
        self.lora = lora
        self.is_compiled, self.sharding = compile, sharding
        self.automatic_optimization = False
        self.policy_version = int(lora is not None and lora.quantize is not None)
        """Number of optimizer steps behind the current weights; weights that are quantized begin at 1, since an engine
        that has read the policy's folder does not have them."""
        self.policy: PreTrainedModel | None = None
        self.adapter: Adapter | None = None
        self.token_record: TokenRecord | None = None  # set where what a step makes of tokens is kept
        self._work = TrainedWork()
        self._log_probs: PolicyLogProbs | None = None
        self._reference: list[PolicyLogProbs] = []  # in a list: its parameters must not enter the checkpoint

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        if self.lora is not None and self.lora.quantize is not None and self.device_mesh is not None:
            raise ValueError(
                f"model.lora.quantize must be null with a strategy that shards the policy, got {self.lora.quantize}"
            )
        self.policy = self._load(self.policy_folder, self.gradient_checkpointing, self.lora)
        if self.adapter is not None and not is_sharded(self.policy):
            self.strict_loading = False  # a checkpoint has the adapter alone
        remove_noise(self.policy.train())
        if self.is_compiled:
            compile_layers(self.policy)
        self._log_probs = self._evaluator(self.policy)
        if self.loss.needs_reference:
            self._reference = [self._make_reference(self._log_probs)]

    def _make_reference(self, log_probs: PolicyLogProbs) -> PolicyLogProbs:
        if self.adapter is not None and self.reference_folder == self.policy_folder:
            return log_probs
        reference = self._load(self.reference_folder)
        reference.eval().requires_grad_(False)
        return self._evaluator(reference)

    def _evaluator(self, model: PreTrainedModel) -> PolicyLogProbs:
        return PolicyLogProbs(model, self.temperature, None if self._meshes is None else self._meshes.tensor)

    @property
    def _sharding(self) -> Sharding:
        return self.sharding.with_precision(str(self.trainer.precision))

    @cached_property
    def _meshes(self) -> Meshes | None:
        return Meshes.of(self.device_mesh)

    def _load(self, folder: str, gradient_checkpointing: bool = False, lora: LoRA | None = None) -> PreTrainedModel:
        if (meshes := self._meshes) is None:
            quantization = None if lora is None else lora.quantization(self.dtype_name)
            model = load_policy(folder, self.dtype_name, gradient_checkpointing, self.attention, quantization)
            self._adapt(model, lora)
            return model
        read = partial(load_policy, folder, self.dtype_name, attention=self.attention)
        return load_sharded_policy(
            read, self._sharding, meshes, gradient_checkpointing, partial(self._adapt, options=lora)
        )

    def _adapt(self, model: PreTrainedModel, options: LoRA | None) -> None:
        if options is not None:
            self.adapter = Adapter(model, options)

    def set_temperature(self, temperature: float) -> None:
        """Takes log-probs at the temperature of sampling, which `RolloutCallback` knows.

        Args:
            temperature: positive.
        """
        self.temperature = temperature
        for evaluator in (self._log_probs, *self._reference):
            if evaluator is not None:
                evaluator.temperature = temperature

    def configure_optimizers(self) -> Any:
        return with_scheduler(self.optimizer(self.trained().values()), self.scheduler)

    def on_train_start(self) -> None:
        if self.trainer.ckpt_path:
            apply_options(self.trainer.optimizers[0], self.lr_schedulers())

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that an optimizer step changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def pop_work(self) -> TrainedWork:
        """What this process has trained since the last call."""
        work, self._work = self._work, TrainedWork()
        return work

    @cached_property
    def _flops(self) -> PolicyFlops:
        assert self.policy is not None
        return PolicyFlops.of(self.policy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["policy_version"] = self.policy_version
        mark_checkpoint(checkpoint, self)
        if self.adapter is not None and not self.strict_loading:
            trained = self.trained()
            checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.policy_version = checkpoint["policy_version"]
        check_resumed(checkpoint, self)
        end_iteration(checkpoint)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Precision in which the policy is evaluated: that of its parameters, or a lower one that is asked for."""
        assert self.policy is not None
        if is_sharded(self.policy) and self._sharding.compute_dtype is not None:
            return self._sharding.compute_dtype
        return torch.bfloat16 if self.trainer.precision == "bf16-mixed" else self.policy.dtype

    def named_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The policy's parameters for an engine of some precision, tied ones under each of their names."""
        assert self.policy is not None
        return named_weights(self.policy, dtype) if self.adapter is None else self.adapter.named_weights()

    def evaluate(self, batch: TrajectoryBatch) -> TrajectoryBatch:
        """Adds log-probs and exact entropies of the present policy to rows that have none.

        Ranks that have a shard of it each call it at the same time.
        """
        assert self._log_probs is not None
        missing = (~batch.is_evaluated).nonzero()[:, 0]
        values = self._evaluate(self._log_probs, batch.select(missing) if len(missing) else None)
        return batch.evaluated(missing, *values, self.policy_version)

    def reference_log_probs(self, batch: TrajectoryBatch) -> Tensor:
        """``[B, T]`` log-probs of the sampled tokens under the frozen reference; 0 elsewhere. All ranks call it."""
        reference = self._reference[0]
        if reference is self._log_probs:
            assert self.adapter is not None
            with self.adapter.off():
                return self._evaluate(reference, batch, with_entropies=False)[0]
        if not is_sharded(reference.model):
            nn.Module.to(reference.model, self.device)
        return self._evaluate(reference, batch, with_entropies=False)[0]

    def _evaluate(
        self, model: PolicyLogProbs, batch: TrajectoryBatch | None, with_entropies: bool = True
    ) -> tuple[Tensor, Tensor]:
        precision = self.trainer.precision_plugin.forward_context
        return evaluate_batch(model, batch, self.max_tokens_per_microbatch, self.device, precision, with_entropies)

    def training_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        """One optimizer step; rows that no policy has evaluated have the log-probs of this one as old ones."""
        with comm.phase("update"):
            if not any(comm.all_gather(batch.has_gradient)):
                log.warning("step %d has no gradient: all rewards of its groups are equal", self.trainer.global_step)
                self._log({"steps_without_signal": 1.0})
                return
            rows, _ = tensor_parallel_batch(batch)
            assert rows is not None
            metrics = self._update(rows.to(batch.token_ids.device))
            self._work += self._flops.of_batch(batch, self._log_probs is not None and self._log_probs.shares)
        self._log({"steps_without_signal": 0.0, **metrics})

    def _update(self, batch: TrajectoryBatch) -> dict[str, Tensor | float]:
        """Takes one optimizer step over the global batch."""
        assert self._log_probs is not None
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        options = self.max_tokens_per_microbatch, self.trainer.strategy, self.manual_backward, self.token_record
        metrics = accumulate_gradient(self._log_probs, self.loss, batch, *options)
        norm = clip_gradients(self.parameters(), self.max_grad_norm)
        is_finite = bool(norm.isfinite())
        if is_finite:
            optimizer.step()
            self.policy_version += 1
            if (scheduler := self.lr_schedulers()) is not None:
                assert not isinstance(scheduler, list)
                scheduler.step()
        else:
            log.warning("step %d is skipped: the norm of its gradient is %s", self.trainer.global_step, norm.item())
        optimizer.zero_grad(set_to_none=True)
        return {
            **metrics,
            "grad_norm": norm.nan_to_num(posinf=0.0),
            "skipped_steps": float(not is_finite),
            "lr": optimizer.param_groups[0]["lr"],
        }

    def validation_step(self, batch: Evaluated, batch_idx: int) -> None:
        """Does nothing: `EvaluationCallback` takes in what was evaluated."""

    test_step = validation_step

    def predict_step(self, batch: Evaluated, batch_idx: int) -> list[dict[str, str | float | None]]:
        """Prompt, text and reward of every trajectory; the files of the run's folder hold the rest."""
        return [{"prompt": t.prompt.id, "text": t.text, "reward": None if r is None else r.reward} for t, r in batch]

    def _log(self, metrics: Mapping[str, Tensor | float]) -> None:
        # All ranks have the same values already, on the CPU, where a strategy of GPUs could not sum them up.
        self.log_dict(
            {f"train/{name}": float(value) for name, value in metrics.items()},
            on_step=False,
            on_epoch=True,
            batch_size=1,
        )

"""The LightningModule of supervised fine-tuning: next-token prediction on conversations."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from appo.distributed import comm
from appo.distributed.fsdp import Meshes, Sharding, amend, clip_gradients, is_sharded
from appo.policy.loading import load_policy, load_sharded_policy, load_tokenizer
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.saving import end_turns, save_policy
from appo.sft.datamodule import SupervisedBatch
from appo.sft.tiny_policy import TinyPolicy

_TIMEOUT_S = 1800.0
"""Seconds that processes wait for one another."""


class SupervisedModule(L.LightningModule):
    """Supervised fine-tuning (SFT): a policy learns to write what the assistant wrote in conversations.

    The rows of a batch are packed, and what they begin with alike goes through the policy once, where it allows that:
    `PolicyLogProbs`.

    Args:
        policy: Hugging Face model folder or name to start from.
        save_to: folder that the policy and its tokenizer are written to at the end.
        fresh: an untrained policy to build in the folder `policy` first; `null`: training starts from what is there.
        lr: greatest learning rate of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: optimizer steps in which the learning rate rises to `lr`; it then falls along a cosine.
        min_lr_share: share of `lr` that is left at the end, in [0, 1].
        dtype: of the parameters: `float32`, `bfloat16` or `auto` for that of the checkpoint.
        gradient_checkpointing: recomputes activations in the backward pass, which saves memory.
        sharding: how the policy is sharded if `trainer.strategy` does so.
    """

    def __init__(
        self,
        policy: str,
        save_to: str,
        fresh: TinyPolicy | None = None,
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.05,
        warmup_steps: int = 30,
        min_lr_share: float = 0.1,
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        sharding: Sharding = Sharding(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__()
        if lr <= 0.0:
            raise ValueError(f"model.lr must be positive, got {lr}")
        if warmup_steps < 0:
            raise ValueError(f"model.warmup_steps must not be negative, got {warmup_steps}")
        if not 0.0 <= min_lr_share <= 1.0:
            raise ValueError(f"model.min_lr_share must lie in [0, 1], got {min_lr_share}")
        self.policy_folder = policy
        self.save_to = save_to
        self.fresh = fresh
        self.lr = lr
        self.betas = betas
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.min_lr_share = min_lr_share
        self.dtype_name = dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.sharding = sharding
        self.policy: PreTrainedModel | None = None
        self._log_probs: PolicyLogProbs | None = None

    def prepare_data(self) -> None:
        if self.fresh is not None:
            self.fresh.build(Path(self.policy_folder))

    def setup(self, stage: str) -> None:
        amend(self.trainer.strategy)
        comm.join(self.trainer.world_size, _TIMEOUT_S)

    def teardown(self, stage: str) -> None:
        comm.leave()

    def configure_model(self) -> None:
        if self.policy is not None:
            return
        if (meshes := Meshes.of(self.device_mesh)) is None:
            self.policy = load_policy(self.policy_folder, self.dtype_name, self.gradient_checkpointing).train()
        else:
            if meshes.tensor is not None:
                raise ValueError(
                    "trainer.strategy must be ddp or fsdp2 in appo sft, got tensor_parallel_size = "
                    f"{meshes.tensor.size()}"
                )
            read = partial(load_policy, self.policy_folder, self.dtype_name)
            sharding = self.sharding.with_precision(str(self.trainer.precision))
            self.policy = load_sharded_policy(read, sharding, meshes, self.gradient_checkpointing).train()
        self._log_probs = PolicyLogProbs(self.policy)

    def configure_optimizers(self) -> Any:
        # Lightning does not clip gradients for a fused optimizer under automatic mixed precision.
        fused = not isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )
        scheduler = LambdaLR(optimizer, self._lr_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _lr_share(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        done = min(1.0, step / max(1.0, float(self.trainer.estimated_stepping_batches)))
        return warmup * (self.min_lr_share + (1.0 - self.min_lr_share) * 0.5 * (1.0 + math.cos(math.pi * done)))

    def training_step(self, batch: SupervisedBatch, batch_idx: int) -> Tensor:
        log_probs, entropies = self._evaluate(batch)
        metrics = {"train/loss": -log_probs.detach().mean(), "train/entropy": entropies.mean()}
        self.log_dict(metrics, prog_bar=True, batch_size=len(log_probs))
        return -log_probs.sum() / batch.num_tokens

    def validation_step(self, batch: SupervisedBatch, batch_idx: int) -> None:
        log_probs, entropies = self._evaluate(batch)
        metrics = {"validation/loss": -log_probs.mean(), "validation/entropy": entropies.mean()}
        self.log_dict(metrics, batch_size=len(log_probs), sync_dist=True)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        assert self.policy is not None
        if is_sharded(self.policy) and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip_gradients(self.parameters(), gradient_clip_val)  # shards of unlike meshes go one by one
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_fit_end(self) -> None:
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]  # not declared
            assert self.policy is not None
            tokenizer = load_tokenizer(self.policy_folder)
            end_turns(self.policy, tokenizer)
            save_policy(self.policy, tokenizer, Path(self.save_to))

    def _evaluate(self, batch: SupervisedBatch) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the tokens that are learned, ``[N]`` each, the latter without gradient."""
        assert self._log_probs is not None
        log_probs, entropies = self._log_probs(batch.token_ids, batch.loss_mask)
        return log_probs[batch.loss_mask], entropies.detach()[batch.loss_mask]

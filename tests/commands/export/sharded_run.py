"""Two processes of Lightning's `ModelParallelStrategy` train a policy for two steps and save a sharded checkpoint.

Its arguments are folders of the policy and of the checkpoint, and a file for the whole weights, gathered.
"""

from __future__ import annotations

import sys

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


class ShardedModule(L.LightningModule):
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder
        self.policy = None

    def configure_model(self) -> None:
        if self.policy is None:
            self.policy = AutoModelForCausalLM.from_pretrained(self.folder)
            mesh = self.device_mesh["data_parallel"]
            for layer in self.policy.model.layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(self.policy, mesh=mesh)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def training_step(self, token_ids: Tensor, batch_idx: int) -> Tensor:
        return self.policy(input_ids=token_ids, labels=token_ids).loss


def main() -> None:
    folder, checkpoint, expected = sys.argv[1:]
    trainer = L.Trainer(
        accelerator="cpu", devices=2, max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    )  # fmt: skip
    module = ShardedModule(folder)
    trainer.fit(module, DataLoader(torch.arange(64).view(8, 8), batch_size=2))
    trainer.save_checkpoint(checkpoint)
    whole = {name: parameter.detach().full_tensor() for name, parameter in module.policy.named_parameters()}
    if trainer.is_global_zero:
        save_file(whole, expected)

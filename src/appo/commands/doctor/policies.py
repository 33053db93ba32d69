"""Untrained policies of a size that suits the device, and the step that loads one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from appo.commands.doctor.result import Figures, Machine, StepError
from appo.environments.demonstrations import WorldDemonstrations
from appo.environments.problems import WorldProblems
from appo.policy.loading import load_policy
from appo.policy.saving import save_policy
from appo.sft import TinyPolicy, WorldConversations

_SPREAD = 2.5
"""Standard deviation of logits: as far apart as those of a trained policy, so that rounding shows as it would there."""


@dataclass(frozen=True)
class Shape:
    """Widths of a Llama with grouped heads."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int
    max_tokens: int


_ON_CPU = Shape(128, 2, 4, 2, 256, 512)
_ON_GPU = Shape(1024, 8, 16, 4, 2816, 4096)


def policy_folder(machine: Machine) -> Path:
    """A policy and its tokenizer; built by the first step that asks."""
    folder = machine.folder / "policy"
    if (folder / "config.json").is_file():
        return folder
    shape = _ON_GPU if machine.is_gpu else _ON_CPU
    texts = WorldConversations(WorldDemonstrations(WorldProblems(num_train=200)))
    tokenizer = TinyPolicy(texts).build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_tokens,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=_SPREAD / shape.hidden_size**0.5)
    partial = machine.folder / f".policy-{os.getpid()}"
    save_policy(model, tokenizer, partial)
    partial.rename(folder)
    return folder


def on_device(machine: Machine, **options: Any) -> PreTrainedModel:
    """The policy, loaded and moved to the device under test."""
    model = load_policy(str(policy_folder(machine)), **options)
    network: torch.nn.Module = model
    network.to(machine.device)
    return model


def _devices(machine: Machine) -> list[torch.device]:
    return [torch.device("cuda", i) for i in range(machine.num_devices)] if machine.is_gpu else [machine.device]


def loading(machine: Machine, figures: Figures) -> None:
    """Loads the policy plainly and, as Lightning does on one device, while the device is the default one."""
    folder = str(policy_folder(machine))
    expected = load_policy(folder).state_dict()
    figures["parameters"] = sum(tensor.numel() for tensor in expected.values())
    for device in _devices(machine):
        for dtype in ("float32", "bfloat16"):
            with torch.device(device):
                model = load_policy(folder, dtype)
            network: torch.nn.Module = model
            network.to(device)
            figures[f"{device} {dtype}"] = f"loaded to {next(model.parameters()).device}"
            for name, tensor in model.state_dict().items():
                if not torch.equal(tensor.cpu(), expected[name].to(tensor.dtype)):
                    raise StepError(f"{name} differs on {device}", "another driver or another torch")

"""Tensor parallelism: a group of processes computes every decoder layer together, a part of each matrix each.

The model says itself how its matrices are split: ``base_model_tp_plan`` of its configuration in transformers. What is
done about it is torch's own. Attention heads and inner units of the MLP are split; hidden states between layers, and so
the output of every layer, are replicas on each process. See "Megatron-LM: Training Multi-Billion Parameter Language
Models Using Model Parallelism" (https://arxiv.org/abs/1909.08053), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedConfig, PreTrainedModel

_SIZE = "trainer.strategy.tensor_parallel_size"

_HEAD_DIMENSION = 2
"""Of queries and keys where they are normed head by head: ``[B, T, heads, head size]``."""


@dataclass(eq=False)
class _LastInput:
    """Hidden states that layers read one after the other, such as those of queries, keys and values.

    As one tensor in the graph, they get one sum of gradients over processes instead of one for every layer. They are
    forgotten as soon as the next matrix is split by rows: a tensor that stayed here would stay in memory.
    """

    hidden: Tensor | None = None
    replicated: DTensor | None = None

    def replicate(self, mesh: DeviceMesh, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        if isinstance(hidden, DTensor):
            return args
        if self.hidden is not hidden:
            self.hidden, self.replicated = hidden, DTensor.from_local(hidden, mesh, [Replicate()], run_check=False)
        return self.replicated, *rest

    def forget(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.hidden = self.replicated = None


_STYLES: Mapping[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
    "colwise_rep": lambda: ColwiseParallel(output_layouts=Replicate()),
    "rowwise": RowwiseParallel,
    "rowwise_split_input": lambda: RowwiseParallel(input_layouts=Replicate()),
    "rowwise_rep": lambda: RowwiseParallel(input_layouts=Replicate()),
    # Each process sees its own heads: their gradients are added up.
    "replicated_with_grad_allreduce": lambda: SequenceParallel(sequence_dim=_HEAD_DIMENSION, use_local_output=True),
}
"""What transformers calls them, and what they are in torch."""

_SPLIT_SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size")


def check_split(config: PreTrainedConfig, size: int) -> None:
    """Refuses a model that cannot be split, before it is read.

    Args:
        config: of the model.
        size: processes of a tensor-parallel group.

    Raises:
        ValueError: if it does not say how to split its layers, or splits something else than linear layers and norms of
            heads, if sizes are not divisible, or if it has dropout, which would differ between the processes.
    """
    text = config.get_text_config(decoder=True)
    styles = _layer_styles(text)
    kind = text.model_type
    if not styles:
        raise ValueError(
            f"model.policy must say how its layers are split (base_model_tp_plan) with {_SIZE} = {size}, got none for "
            f"{kind}"
        )
    if unknown := sorted(set(styles.values()) - _STYLES.keys()):
        raise ValueError(
            f"model.policy must be split by {', '.join(_STYLES)} with {_SIZE} = {size}, got {', '.join(unknown)} for "
            f"{kind}"
        )
    for name in _SPLIT_SIZES:
        values = getattr(text, name, None) or size
        # Some models have one a layer.
        for value in values if isinstance(values, list) else [values]:
            if value % size:
                raise ValueError(f"{_SIZE} must divide {name} = {value} of model.policy, got {size}")
    for name, value in text.to_dict().items():
        if name != "classifier_dropout" and ("dropout" in name or "pdrop" in name) and value:
            raise ValueError(f"model.policy must have no dropout with {_SIZE} = {size}, got {name}={value}")


def split_layers(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Splits the decoder layers of a model in place; embeddings, LM head and norms between layers stay as they are.

    Args:
        model: it may be on the meta device.
        mesh: of one dimension, the tensor-parallel group.

    Raises:
        ValueError: if `check_split` refuses the model.
    """
    check_split(model.config, mesh.size())
    names = _layer_styles(model.config.get_text_config(decoder=True))
    styles = {pattern: _STYLES[name]() for pattern, name in names.items()}
    decoder, last = model.get_decoder(), _LastInput()
    # Before those of torch, which then get what these return.
    for name, module in decoder.named_modules():
        style = next((style for pattern, style in styles.items() if fnmatch(name, pattern)), None)
        if isinstance(style, ColwiseParallel):
            module.register_forward_pre_hook(partial(last.replicate, mesh))
        elif isinstance(style, RowwiseParallel):
            module.register_forward_pre_hook(last.forget)
    parallelize_module(decoder, mesh, styles)


def _layer_styles(text: PreTrainedConfig) -> dict[str, str]:
    styles = getattr(text, "base_model_tp_plan", None) or {}
    return {name: style for name, style in styles.items() if name.startswith("layers.")}


@dataclass(frozen=True)
class TokenSplit:
    """Tokens that a tensor-parallel group has alike, and of which each process computes a shard.

    A weight that is used on a shard gets the gradient of its tokens times the number of processes: sharding takes the
    mean over processes, which is then the gradient of all tokens.

    Attributes:
        mesh: of one dimension.
        num_tokens: in all, any number.
    """

    mesh: DeviceMesh
    num_tokens: int

    def shard(self, values: Tensor) -> Tensor:
        """Takes this process's ``[N', ...]`` of ``[N, ...]`` values; the gradients of all of them come back."""
        split = DTensor.from_local(values, self.mesh, [Replicate()], run_check=False).redistribute(
            placements=[Shard(0)]
        )
        return _scale_gradient(split.to_local(), 1.0 / self.mesh.size())

    def all_gather(self, values: Tensor) -> Tensor:
        """Joins the ``[N]`` values of all tokens from the ``[N']`` of each process's shard."""
        scaled = _scale_gradient(values, self.mesh.size())
        shape, stride = torch.Size([self.num_tokens]), (1,)
        return DTensor.from_local(
            scaled, self.mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        ).full_tensor()


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    scaled: Tensor = _ScaledGradient.apply(tensor, factor)  # type: ignore[no-untyped-call]
    return scaled

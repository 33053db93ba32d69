"""A policy whose weights, gradients and optimizer state are sharded over the processes (FSDP2)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel

from appo.distributed.checkpoint import trust_no_checkpoint
from appo.distributed.gather import full_tensor
from appo.distributed.tensor_parallel import split_layers

# It advises against two collectives where one could do: here they bring weights to an engine, once an update.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

_PROBE_TOKENS = 8

_SAME_NORM = 0.01
"""Relative difference of norms that rounding in low precision may make."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


OFFLOADING_BACKENDS = "cpu:gloo,cuda:nccl"
"""Of torch.distributed, where shards on the CPU are all-gathered on GPUs, and norms of their gradients on the CPU."""


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's `ModelParallelStrategy` with the policy sharded over all processes, of all nodes.

    Args:
        save_distributed_checkpoint: each process writes its shard into a checkpoint folder; False writes one file.
        process_group_backend: of torch.distributed. `null`: that of the device.
        timeout: of every collective.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(1, 1, save_distributed_checkpoint, process_group_backend, timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def amend(strategy: Strategy) -> None:
    """Has a strategy do two things otherwise than Lightning does.

    It loads checkpoints without executing what they hold. And if it shards, it leaves shards on the device that they
    were loaded to, which is the CPU with ``model.sharding.cpu_offload``.

    Args:
        strategy: before it is set up.
    """
    trust_no_checkpoint(strategy)
    if isinstance(strategy, ModelParallelStrategy):
        strategy.model_to_device = partial(_move_all_but_shards, strategy)  # type: ignore[method-assign]


def _move_all_but_shards(strategy: ModelParallelStrategy) -> None:
    module, device = strategy.lightning_module, strategy.root_device
    assert module is not None
    network: nn.Module = module
    network._apply(lambda tensor: tensor if isinstance(tensor, DTensor) else tensor.to(device))
    module._device = device  # as `LightningModule.to` would have set it


@dataclass(frozen=True, eq=False)
class Meshes:
    """The processes that hold a sharded policy, in meshes of one dimension each.

    Attributes:
        world: all of them.
        data: those that hold the same part of every decoder layer, a shard of it each.
        tensor: the tensor-parallel group, which computes every decoder layer together; None without one.
    """

    world: DeviceMesh
    data: DeviceMesh
    tensor: DeviceMesh | None = None

    @classmethod
    def of(cls, mesh: DeviceMesh | None) -> Meshes | None:
        """Takes Lightning's mesh of two dimensions apart; None without one."""
        if mesh is None:
            return None
        data, tensor = mesh["data_parallel"], mesh["tensor_parallel"]
        if tensor.size() == 1:
            return cls(data, data)
        return cls(init_device_mesh(mesh.device_type, (mesh.size(),)), data, tensor)

    @property
    def groups(self) -> list[dist.ProcessGroup]:
        """The process groups of all meshes."""
        return [mesh.get_group() for mesh in (self.world, self.data, self.tensor) if mesh is not None]


@dataclass(frozen=True)
class Sharding:
    """How a policy is sharded, where `trainer.strategy` does so."""

    param_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the unsharded weights, and so of the computation. `null`: that of the parameters, or bfloat16 with
    `trainer.precision=bf16-mixed`."""
    reduce_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """In which gradients are added up over processes. `null`: `param_dtype`, or float32 with
    `trainer.precision=bf16-mixed`."""
    cpu_offload: bool = False
    """Keeps shards, gradients and optimizer state in the memory of the CPU between their uses."""

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """`param_dtype` as torch has it."""
        return None if self.param_dtype is None else _DTYPES[self.param_dtype]

    def with_precision(self, precision: str) -> Sharding:
        """Returns the options with which weights are cast as they are all-gathered, where the precision is mixed.

        Cast in every operation, as without shards, they would stay in memory until the backward pass.

        Args:
            precision: of the trainer.
        """
        if precision != "bf16-mixed" or self.param_dtype is not None:
            return self
        return replace(self, param_dtype="bfloat16", reduce_dtype=self.reduce_dtype or "float32")

    def __call__(self, model: PreTrainedModel, meshes: Meshes) -> None:
        """Shards a model in place: each decoder layer by itself, and the rest together.

        Weights are resharded after every use, so that parameters are shards whenever nothing computes. What tensor
        parallelism does not split is sharded over all processes, but for the norms inside of decoder layers, of which
        each process of a tensor-parallel group has a replica.

        Args:
            model: any causal language model of transformers.
            meshes: of the processes.

        Raises:
            ValueError: if the model has no list of decoder layers, or shards are to leave devices that are CPUs.
        """
        if self.cpu_offload and meshes.world.device_type == "cpu":
            raise ValueError("model.sharding.cpu_offload must be false with trainer.accelerator=cpu, got true")
        reduce_dtype = None if self.reduce_dtype is None else _DTYPES[self.reduce_dtype]
        precision = MixedPrecisionPolicy(self.compute_dtype, reduce_dtype, cast_forward_inputs=False)
        offload = CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy()
        layers = decoder_layers(model)
        if meshes.tensor is not None:
            split_layers(model, meshes.tensor)
        modules: list[tuple[nn.Module, DeviceMesh]] = [
            *((layer, meshes.data) for layer in layers),
            (model, meshes.world),
        ]
        for module, mesh in modules:
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=precision, offload_policy=offload)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Finds the layers of a causal language model that follow one another.

    Raises:
        ValueError: if no list of modules has as many entries as the configuration has hidden layers.
    """
    number = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return module
    raise ValueError(
        f"model.policy must have a list of its {number} decoder layers to be sharded or compiled by, got none in "
        f"{type(model).__name__}"
    )


def is_sharded(model: nn.Module) -> bool:
    """Says whether every process holds only a part of the weights."""
    return isinstance(model, FSDPModule)


def check_replicas(model: PreTrainedModel, meshes: Meshes) -> None:
    """Refuses a model with replicas of a weight in a tensor-parallel group that would drift apart.

    They do if what uses the weight sees a part of a layer, such as some of the heads, and the model does not say so:
    each process then has a part of the gradient. A few tokens pass the model, forward and back, to find it out.

    Args:
        model: sharded, with its weights.
        meshes: of the processes; all of them call this.

    Raises:
        ValueError: naming the first such parameter.
    """
    if meshes.tensor is None:
        return
    token_ids = torch.arange(_PROBE_TOKENS, device=meshes.world.device_type).unsqueeze(0)
    model(input_ids=token_ids, use_cache=False).logits.float().log_softmax(-1)[..., 0].sum().backward()
    norms: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter.grad, DTensor) and parameter.grad.device_mesh == meshes.data:
            norms[name] = float(parameter.grad.to_local().norm())
    model.zero_grad(set_to_none=True)
    everyones = [norms] * meshes.tensor.size()
    dist.all_gather_object(everyones, norms, group=meshes.tensor.get_group())
    for name in norms:
        values = [each[name] for each in everyones]
        if max(values) - min(values) > _SAME_NORM * max(values):
            raise ValueError(
                f"model.policy must say how {name} is split with trainer.strategy.tensor_parallel_size = "
                f"{meshes.tensor.size()}: it is a replica, and norms of its gradient must be equal, got {values}"
            )


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales gradients down to a norm, that of all of them on all processes, which call it together.

    Args:
        parameters: those without a gradient are left out.
        max_norm: 0 leaves gradients as they are.

    Returns:
        The norm that they had, a scalar.
    """
    # Gradients of one mesh at a time: those that are sharded in unlike ways do not go into one operation.
    by_mesh: dict[DeviceMesh | None, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
            by_mesh[mesh].append(parameter)
    norms = [full_tensor(get_total_norm([p.grad for p in group if p.grad is not None])) for group in by_mesh.values()]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    if max_norm > 0.0:
        for group in by_mesh.values():
            clip_grads_with_norm_(group, max_norm, norm)
    return norm

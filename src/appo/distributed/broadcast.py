"""The way of a policy's weights from the one process that has read them into the shards of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What a process must know of a policy that another one has read, to make one like it without its weights.

    Attributes:
        config: of the model.
        generation_config: of the model.
        dtypes: of every parameter, by name; a model may keep some in a higher precision than the rest.
        buffers: all of them by name, on the CPU: those that no checkpoint holds, such as frequencies of positions, are
            computed when a model is made, which a model without weights is not.
    """

    config: PreTrainedConfig
    generation_config: GenerationConfig | None
    dtypes: Mapping[str, torch.dtype]
    buffers: Mapping[str, Tensor]

    @classmethod
    def shared(cls, source: PreTrainedModel | None, mesh: DeviceMesh) -> Blueprint:
        """Gives all processes the blueprint of the first one's model.

        Args:
            source: the model, on the first process.
            mesh: of one dimension, all processes.
        """
        blueprints: list[Any] = [None]
        if source is not None:
            blueprints = [
                cls(
                    source.config,
                    source.generation_config,
                    {name: parameter.dtype for name, parameter in source.named_parameters()},
                    {name: buffer.cpu() for name, buffer in source.named_buffers(remove_duplicate=False)},
                )
            ]
        dist.broadcast_object_list(blueprints, group=mesh.get_group(), group_src=0)
        blueprint: Blueprint = blueprints[0]
        return blueprint

    def set_dtypes(self, model: PreTrainedModel) -> None:
        """Gives the parameters of a model on the meta device the precision that they have in the first process.

        Raises:
            ValueError: if the model has other parameters.
        """
        parameters = dict(model.named_parameters())
        if parameters.keys() != self.dtypes.keys():
            names = ", ".join(sorted(parameters.keys() ^ self.dtypes.keys()))
            raise ValueError(
                f"model.policy must have the parameters that its configuration describes, differs in {names}"
            )
        for name, parameter in parameters.items():
            parameter.data = parameter.data.to(self.dtypes[name])

    @torch.no_grad()
    def fill(self, model: PreTrainedModel, source: PreTrainedModel | None, mesh: DeviceMesh, device: str) -> None:
        """Puts the weights of the first process into the shards of all, parameter by parameter.

        Args:
            model: sharded, on the meta device.
            source: the unsharded model, on the first process; it is left without weights.
            mesh: of one dimension, all processes.
            device: of the shards.
        """
        model.to_empty(device=device)
        weights = {} if source is None else dict(source.named_parameters())
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor)
            # Only the first process's is read.
            full = weights[name] if weights else torch.empty(parameter.shape, dtype=parameter.dtype)
            full = full.detach().to(mesh.device_type)
            if parameter.device_mesh.size() < mesh.size():
                # Norms that several processes have alike: the first one of each mesh hands them on.
                dist.broadcast(full, group=mesh.get_group(), group_src=0)
            shard = distribute_tensor(full, parameter.device_mesh, parameter.placements)
            parameter.to_local().copy_(shard.to_local())
            if weights:
                weights[name].data = full.new_empty(0)
        for name, buffer in self.buffers.items():
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, buffer.to(mesh.device_type))

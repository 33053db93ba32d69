"""vLLM's weight transfer with gloo where NCCL would be, at both ends; as a program, a server that offers it.

Groups, packing, loading and all calls are vLLM's own: what is replaced is NCCL's communicator, and the loops around it,
which take streams of a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.distributed import BroadcastOptions
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer import nccl_engine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.packed_tensor import pack_tensors, unpack_tensor

from appo.engines.vllm_server.transfer_backends import BACKENDS, Backend

if TYPE_CHECKING:
    import pytest


class GlooCommunicator:
    """What vLLM's engines use of a `PyNcclCommunicator`."""

    def __init__(self, address: str, port: int, rank: int, world_size: int) -> None:
        self.group: Any = stateless_init_torch_distributed_process_group(
            address, port, rank, world_size, "gloo", timeout=timedelta(seconds=60)
        )

    def broadcast(self, tensor: Tensor, src: int) -> None:
        options = BroadcastOptions()
        options.rootRank = src
        if self.group is not None:
            self.group.broadcast([tensor], options).wait()

    def destroy(self) -> None:
        self.group = None


def open_trainer(init_info: Any) -> GlooCommunicator:
    return GlooCommunicator(init_info.master_address, init_info.master_port, 0, init_info.world_size)


def open_worker(init_info: Any, parallel_config: Any) -> GlooCommunicator:
    rank = init_info.rank_offset + parallel_config.rank
    return GlooCommunicator(init_info.master_address, init_info.master_port, rank, init_info.world_size)


def send_packed(
    iterator: Iterator[tuple[str, Tensor]],
    group: GlooCommunicator,
    src: int,
    post_iter_func: Callable[[tuple[str, Tensor]], Tensor],
    buffer_size_bytes: int,
    num_buffers: int,
) -> None:
    while chunk := pack_tensors(iterator, post_iter_func, buffer_size_bytes):
        group.broadcast(chunk.packed_tensor, src)


def receive_packed(
    iterator: Iterator[tuple[str, tuple[list[int], torch.dtype]]],
    group: GlooCommunicator,
    src: int,
    post_unpack_func: Callable[[list[tuple[str, Tensor]]], None],
    buffer_size_bytes: int,
    num_buffers: int,
    device: torch.device,
) -> None:
    names, shapes, dtypes, sizes = [], [], [], []
    told = list(iterator)
    for number, (name, (shape, dtype)) in enumerate(told, 1):
        names.append(name)
        shapes.append(shape)
        dtypes.append(dtype)
        sizes.append(prod(shape) * dtype.itemsize)
        if sum(sizes) > buffer_size_bytes or number == len(told):
            packed = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
            group.broadcast(packed, src)
            post_unpack_func(unpack_tensor(packed, names, shapes, dtypes, sizes))
            names, shapes, dtypes, sizes = [], [], [], []


REPLACED = {
    "open_trainer_endpoint": open_trainer,
    "worker_init_process_group": open_worker,
    "packed_nccl_broadcast_producer": send_packed,
    "packed_nccl_broadcast_consumer": receive_packed,
}
"""In vLLM's engine for NCCL."""


@dataclass
class GlooTrainerInitInfo(nccl_engine.NCCLTrainerInitInfo):
    """Says that the trainer sends by gloo."""

    backend: ClassVar[str] = "gloo"


def use(patch: pytest.MonkeyPatch, open_trainer: Callable[[Any], Any] = open_trainer) -> None:
    """Lets a trainer of this process send by it.

    Args:
        patch: takes it back.
        open_trainer: makes the communicator.
    """
    for name, replacement in (REPLACED | {"open_trainer_endpoint": open_trainer}).items():
        patch.setattr(nccl_engine, name, replacement)
    patch.setitem(BACKENDS, "gloo", Backend("tests.engines.vllm_server.gloo_transfer", "GlooTrainerInitInfo", "cpu"))


WeightTransferTrainerFactory.register_engine("gloo", nccl_engine.NCCLTrainerWeightTransferEngine)
WeightTransferEngineFactory.register_engine("gloo", nccl_engine.NCCLWeightTransferEngine)

if __name__ in ("__main__", "__mp_main__"):
    for name, replacement in REPLACED.items():
        setattr(nccl_engine, name, replacement)

if __name__ == "__main__":
    from vllm.entrypoints.launchers.api_server.entry import main

    main()

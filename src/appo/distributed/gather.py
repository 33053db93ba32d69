"""Weights of a sharded policy, whole again: for an engine, for a file, or for a moment of computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

_PIECE_BYTES = 2**24
"""Gathered at once of a sharded tensor; the buffers of a collective on the CPU take twice as much beside it."""


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered from the processes if it is sharded; all of them must ask.

    It takes 64 MiB at most beside the tensor itself.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    num_bytes = tensor.numel() * tensor.element_size()
    if num_bytes <= _PIECE_BYTES or not _is_split_as_layers_are(tensor):
        return tensor.full_tensor()
    return _gathered_in_pieces(tensor)


def _is_split_as_layers_are(tensor: DTensor) -> bool:
    """Whether each process has rows of the whole, or of the part that tensor parallelism has split off before."""
    mesh, (*before, last) = tensor.device_mesh, tensor.placements
    if mesh.ndim == 1:
        return last == Shard(0)
    if mesh.ndim > 2 or last not in (Shard(0), Shard(1)):
        return False
    # Where the last dimension of the mesh has split rows first, torch says so in a placement of its own.
    (first,) = before
    return first == Shard(0) if last == Shard(1) else getattr(first, "split_factor", None) == mesh.size(1)


def _parts(full: Tensor, tensor: DTensor) -> list[Tensor]:
    """Views of what each process of a mesh has of a tensor, in its order; the first one is the largest."""
    mesh, last = tensor.device_mesh, tensor.placements[-1]
    if mesh.ndim == 1:
        return _chunks(full, mesh.size(), 0)
    assert isinstance(last, Shard)
    split = [_chunks(part, mesh.size(0), 0) for part in _chunks(full, mesh.size(1), last.dim)]
    return [part for parts in zip(*split, strict=True) for part in parts]


def _chunks(tensor: Tensor, number: int, dim: int) -> list[Tensor]:
    chunks = tensor.chunk(number, dim)
    return [*chunks, *[tensor.narrow(dim, 0, 0)] * (number - len(chunks))]


def _gathered_in_pieces(tensor: DTensor) -> Tensor:
    """Gathers some rows of every part at a time: at once, buffers of a collective are as large as the tensor again."""
    mesh, mine = tensor.device_mesh, tensor.to_local()
    full = mine.new_empty(tensor.shape)
    parts = _parts(full, tensor)
    num_rows, row_size = len(parts[0]), parts[0][0].numel()
    step = max(1, min(num_rows, _PIECE_BYTES // (row_size * full.element_size() * len(parts))))
    buffers = [mine.new_zeros(step * row_size)]
    groups = [mesh.get_group(dimension) for dimension in reversed(range(mesh.ndim))]
    for group in groups:
        buffers.append(mine.new_empty(dist.get_world_size(group) * len(buffers[-1])))
    for start in range(0, num_rows, step):
        rows = mine[start : start + step]
        buffers[0][: rows.numel()] = rows.flatten()
        for ours, everyones, group in zip(buffers, buffers[1:], groups, strict=False):
            dist.all_gather_into_tensor(everyones, ours, group=group)
        for part, piece in zip(parts, buffers[-1].view(len(parts), -1), strict=True):
            rows = part[start : start + step]
            rows.copy_(piece[: rows.numel()].view(rows.shape))
    return full


def whole_state(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state of a sharded model on the CPU, gathered tensor by tensor; all processes must ask.

    Args:
        model: the model.
        keep: False on processes that do not want it; they get nothing.
    """
    state: dict[str, Tensor] = {}
    by_parameter: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        # Tied parameters stay one tensor.
        if id(value) not in by_parameter:
            gathered = whole(value.detach())
            by_parameter[id(value)] = gathered.cpu() if keep else gathered.new_empty(0)
        state[name] = by_parameter[id(value)]
    return state if keep else {}


@contextmanager
@torch.no_grad()
def gathered(model: PreTrainedModel) -> Iterator[None]:
    """Keeps what a sharded model holds besides its decoder layers whole, as its `forward` does; all processes enter."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_reshard_after_forward(False, recurse=False)
    # The first use of a sharded model must be that of the whole.
    with torch.compiler.set_stance("force_eager"):
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    try:
        yield
    finally:
        model.set_reshard_after_forward(True, recurse=False)
        model.reshard()

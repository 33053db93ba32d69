"""Full tensors of a sharded policy: for an engine, for a file, or for a moment of computation."""

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
"""All-gathered at once of a tensor; the buffers of a collective on the CPU take twice as much beside it."""


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor as it is without shards; all processes call it.

    It takes 64 MiB at most beside the tensor itself.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    num_bytes = tensor.numel() * tensor.element_size()
    if num_bytes <= _PIECE_BYTES or not _is_split_as_layers_are(tensor):
        return tensor.full_tensor()
    return _all_gather_in_pieces(tensor)


def _is_split_as_layers_are(tensor: DTensor) -> bool:
    """Says whether FSDP has cut the first dimension, of all or of the part that tensor parallelism has cut before."""
    mesh, (*before, last) = tensor.device_mesh, tensor.placements
    if mesh.ndim == 1:
        return last == Shard(0)
    if mesh.ndim > 2 or last not in (Shard(0), Shard(1)):
        return False
    # Tensor parallelism, the last dimension of the mesh, cuts first and FSDP cuts its parts. Where both cut the first
    # dimension of the tensor, torch says so in a placement of its own, `_StridedShard`.
    (first,) = before
    return first == Shard(0) if last == Shard(1) else getattr(first, "split_factor", None) == mesh.size(1)


def _parts(full: Tensor, tensor: DTensor) -> list[Tensor]:
    """Views what each process of a mesh has of a tensor, in its order; the first part is the largest."""
    mesh, last = tensor.device_mesh, tensor.placements[-1]
    if mesh.ndim == 1:
        return _chunks(full, mesh.size(), 0)
    assert isinstance(last, Shard)
    split = [_chunks(part, mesh.size(0), 0) for part in _chunks(full, mesh.size(1), last.dim)]
    return [part for parts in zip(*split, strict=True) for part in parts]


def _chunks(tensor: Tensor, number: int, dim: int) -> list[Tensor]:
    chunks = tensor.chunk(number, dim)
    # A dimension that does not suffice for all leaves the last processes with nothing.
    return [*chunks, *[tensor.narrow(dim, 0, 0)] * (number - len(chunks))]


def _all_gather_in_pieces(tensor: DTensor) -> Tensor:
    """All-gathers a few entries of the first dimension of every part at a time.

    At once, the buffers of a collective would be as large as the tensor again. Every process sends a piece of the same
    length: where its part has ended, what an earlier piece has left in the buffer goes along, and nobody reads it.
    """
    mesh, local = tensor.device_mesh, tensor.to_local()
    full = local.new_empty(tensor.shape)
    parts = _parts(full, tensor)
    length, width = len(parts[0]), parts[0][0].numel()
    step = max(1, min(length, _PIECE_BYTES // (width * full.element_size() * len(parts))))
    buffers = [local.new_zeros(step * width)]
    # Over one dimension of the mesh after the other, the last one first: pieces then lie in the order of `_parts`.
    groups = [mesh.get_group(dimension) for dimension in reversed(range(mesh.ndim))]
    for group in groups:
        buffers.append(local.new_empty(dist.get_world_size(group) * len(buffers[-1])))
    for start in range(0, length, step):
        piece = local[start : start + step]
        buffers[0][: piece.numel()] = piece.flatten()
        for sent, received, group in zip(buffers, buffers[1:], groups, strict=False):
            dist.all_gather_into_tensor(received, sent, group=group)
        for part, values in zip(parts, buffers[-1].view(len(parts), -1), strict=True):
            piece = part[start : start + step]
            piece.copy_(values[: piece.numel()].view(piece.shape))
    return full


def full_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Copies the state of a sharded model to the CPU, tensor by tensor; all processes call it.

    Args:
        model: the model.
        keep: False on processes that do not want it; they get nothing.
    """
    state: dict[str, Tensor] = {}
    by_parameter: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        # Tied parameters stay one tensor.
        if id(value) not in by_parameter:
            full = full_tensor(value.detach())
            by_parameter[id(value)] = full.cpu() if keep else full.new_empty(0)
        state[name] = by_parameter[id(value)]
    return state if keep else {}


@contextmanager
@torch.no_grad()
def unsharded(model: PreTrainedModel) -> Iterator[None]:
    """Unshards what a model holds besides its decoder layers, as its `forward` does; all processes enter."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.set_reshard_after_forward(False, recurse=False)
    # FSDP finds out which module is the root in the first forward pass, so that must be one of the whole model.
    with torch.compiler.set_stance("force_eager"):
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    try:
        yield
    finally:
        model.set_reshard_after_forward(True, recurse=False)
        model.reshard()

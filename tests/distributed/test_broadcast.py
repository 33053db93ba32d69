"""Two processes of which one reads a policy and both get a shard of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from appo.distributed import gather
from appo.distributed.fsdp import Meshes, Sharding
from appo.distributed.gather import full_tensor
from appo.policy.loading import load_policy, load_sharded_policy
from appo.policy.saving import named_weights
from tests.distributed.processes import as_processes
from tests.engines.tiny_policy import make_model, make_tokenizer

pytestmark = pytest.mark.distributed

SHARDING = Sharding()


def compare(rank: int, policy: str, dtype: str) -> None:
    """The policy as the first process hands it out, and as each process reads and shards it for itself."""
    mesh = init_device_mesh("cpu", (2,))
    meshes = Meshes(mesh, mesh)
    read_here = load_policy(policy, dtype)
    SHARDING(read_here, meshes)
    received = load_sharded_policy(
        lambda: load_policy(policy if rank == 0 else "no/such/policy", dtype), SHARDING, meshes
    )
    assert received.training == read_here.training
    ours, theirs = dict(received.named_parameters()), dict(read_here.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert isinstance(ours[name], DTensor)
        assert ours[name].dtype == parameter.dtype
        assert ours[name].to_local().shape == parameter.to_local().shape
        assert torch.equal(full_tensor(ours[name]), full_tensor(parameter)), name
    tied = [
        {
            name
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter is model.lm_head.weight
        }
        for model in (received, read_here)
    ]
    assert tied[0] == tied[1]
    buffers = dict(read_here.named_buffers(remove_duplicate=False))
    assert "model.rotary_emb.inv_freq" in buffers
    for name, buffer in received.named_buffers(remove_duplicate=False):
        assert torch.equal(buffer, buffers.pop(name)), name
    assert not buffers
    token_ids = torch.arange(24).view(2, 12)
    logits = [model(input_ids=token_ids).logits for model in (received, read_here)]
    assert torch.equal(*logits)
    for model in (received, read_here):
        model(input_ids=token_ids, labels=token_ids).loss.backward()
    for name, parameter in theirs.items():
        assert torch.equal(ours[name].grad.to_local(), parameter.grad.to_local()), name


@pytest.mark.parametrize(
    ("architecture", "tie", "dtype"),
    [("llama", False, "float32"), ("llama", True, "float32"), ("qwen3", True, "bfloat16")],
)
def test_the_first_process_reads_a_policy_and_each_gets_its_shard(tmp_path, architecture, tie, dtype):
    policy = tmp_path / "policy"
    make_model(architecture, len(make_tokenizer()), tie=tie).save_pretrained(policy)
    as_processes(compare, tmp_path, str(policy), dtype)


def gather_in_pieces(rank: int) -> None:
    gather._PIECE_BYTES = 64
    mesh = init_device_mesh("cpu", (2,))
    # Fewer rows than processes, an odd number of them, rows that are a piece by themselves.
    for shape in ((1, 40), (7, 5), (5, 100), (64, 3, 2), (200,)):
        numbers = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
        gathered = full_tensor(distribute_tensor(numbers, mesh, [Shard(0)]))
        assert torch.equal(gathered, numbers), shape
    _gathers_half_for_half_the_precision(mesh)


def _gathers_half_for_half_the_precision(mesh: DeviceMesh) -> None:
    model = nn.Linear(40, 30, bias=False)
    numbers = model.weight.detach().clone()
    fully_shard(model, mesh=mesh)
    num_bytes, all_gather = [0], dist.all_gather_into_tensor

    def counting(received: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        num_bytes[0] += received.nbytes
        return all_gather(received, *arguments, **options)

    dist.all_gather_into_tensor = counting
    gathered = []
    for dtype in (None, torch.float32, torch.bfloat16):
        ((_, weight),) = named_weights(model, dtype)
        assert torch.equal(weight, numbers.to(dtype or torch.float32))
        gathered.append(num_bytes[0])
        num_bytes[0] = 0
    dist.all_gather_into_tensor = all_gather
    assert gathered[0] == gathered[1] == 2 * gathered[2] > 0


def test_gathers_large_tensors_piece_by_piece(tmp_path):
    as_processes(gather_in_pieces, tmp_path)


def gather_parts_in_pieces(rank: int, sizes: tuple[int, int]) -> None:
    """Matrices that tensor parallelism has split by rows and by columns, and sharding once more."""
    gather._PIECE_BYTES = 64
    DTensor.full_tensor = None  # gathers at once
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("data", "tensor"))
    # As above, and an odd number of columns.
    for shape in ((8, 40), (2, 40), (22, 5), (10, 100), (14, 7), (40,)):
        numbers = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
        for dim in range(len(shape)):
            part = nn.Module()
            part.weight = nn.Parameter(distribute_tensor(numbers, mesh["tensor"], [Shard(dim)]))
            fully_shard(part, mesh=mesh["data"])
            assert torch.equal(full_tensor(part.weight.detach()), numbers), (shape, dim, part.weight.placements)


@pytest.mark.parametrize("sizes", [(1, 2), (3, 2)])
def test_gathers_parts_of_large_tensors_piece_by_piece(tmp_path, sizes):
    as_processes(gather_parts_in_pieces, tmp_path, sizes, num=math.prod(sizes))

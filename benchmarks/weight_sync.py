"""Measures the memory that a weight sync takes, on two processes on a CPU.

The two share the policy by `fsdp2`, or by tensor parallelism. Figures are in MiB.

- `start`: largest resident memory of each process above what it had before, while the
  first process reads it and both receive their shards; and the same when each reads all for itself.
- `weight sync`: largest resident memory of each process above its shard while an engine is given all weights: read one
  after the other, copied into a full policy (as `HFEngine` and a colocated vLLM do, whose copy was there before), and
  written to a folder by the first process (for servers). Beside it the largest parameter and the largest decoder layer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""What makes the C library give memory back at once; without it, a peak holds what was freed long before."""

_SIZES = {
    "44M, vocabulary 32,000": {"vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 4},
    "68M, large layers": {"vocab_size": 2_000, "hidden_size": 1024, "num_hidden_layers": 5},
}
_TENSOR_PARALLEL_SIZES = {"fsdp2": 1, "tensor parallel": 2}
_MIB = 2**20


def make_policy(folder: Path, sizes: dict[str, int]) -> None:
    """Saves a random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden = sizes["hidden_size"]
    config = LlamaConfig(**sizes, intermediate_size=3 * hidden, num_attention_heads=8, max_position_embeddings=1024)
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(pipe: Connection, rank: int, folder: Path, policy: str, tensor_parallel_size: int) -> None:
    """Everything that one process does."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import AutoModelForCausalLM

    from appo.distributed.fsdp import Meshes, Sharding, decoder_layers
    from appo.engines.vllm_server.weight_files import WeightFolder
    from appo.policy.loading import load_policy, load_sharded_policy
    from appo.policy.saving import named_weights
    from appo.policy.weight_layout import WeightLayout

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sizes = (2 // tensor_parallel_size, tensor_parallel_size)
    processes = Meshes.of(init_device_mesh("cpu", sizes, mesh_dim_names=("data_parallel", "tensor_parallel")))
    sharding = Sharding()
    assert processes is not None
    figures: dict[str, float] = {}
    # What is imported on the way must not count.
    layout = WeightLayout.of_policy(policy)
    _warm_up(folder, sharding, processes)
    with _peak(figures, "start, all read"):
        model = load_policy(policy)
        sharding(model, processes)
    del model
    with _peak(figures, "start, first reads"):
        model = load_sharded_policy(lambda: load_policy(policy), sharding, processes)
    dist.barrier()
    with _peak(figures, "weight sync, one by one"):
        for _ in layout.checked(named_weights(model)):
            pass
    engine = AutoModelForCausalLM.from_pretrained(policy)
    held = dict(engine.named_parameters(remove_duplicate=False))
    for parameter in held.values():
        parameter.data = parameter.data.clone()  # those of the file are mapped, and count when they are touched
    dist.barrier()
    with _peak(figures, "weight sync, copied"):
        for name, tensor in layout.checked(named_weights(model)):
            held[name].data.copy_(tensor)
    weights = WeightFolder(str(folder / "weights"))
    dist.barrier()
    with _peak(figures, "weight sync, written"):
        tensors = layout.checked(named_weights(model))
        if rank == 0:
            weights.write(tensors, 1)
        else:
            for _ in tensors:
                pass
    parameters = {name: shape.numel() * 4 / _MIB for name, shape in layout.shapes.items()}
    figures["policy"] = sum(parameters.values())
    figures["largest parameter"] = max(parameters.values())
    layer = decoder_layers(engine)[0]
    figures["decoder layer"] = sum(parameter.numel() for parameter in layer.parameters()) * 4 / _MIB
    dist.destroy_process_group()
    pipe.send(figures)


def _warm_up(folder: Path, sharding: Any, processes: Any) -> None:
    """Goes the whole way once with a policy of no size."""
    import torch.distributed as dist

    from appo.policy.loading import load_policy, load_sharded_policy
    from appo.policy.saving import named_weights

    small = folder / "small"
    if dist.get_rank() == 0:
        make_policy(small, {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1})
    dist.barrier()
    for _ in named_weights(load_sharded_policy(lambda: load_policy(str(small)), sharding, processes)):
        pass


@contextmanager
def _peak(figures: dict[str, float], name: str) -> Iterator[None]:
    """Notes the largest resident memory above the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _high_water_mark()
    yield
    figures[name] = (_high_water_mark() - before) / _MIB


def _high_water_mark() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure_on_two(sizes: dict[str, int], tensor_parallel_size: int) -> list[dict[str, float]]:
    """The figures of each process."""
    # What the C library keeps of freed memory is not counted.
    os.environ |= GIVE_BACK
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        policy = Path(name) / "policy"
        maker = context.Process(target=make_policy, args=(policy, sizes))
        maker.start()
        maker.join()
        pipes, processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            args = (theirs, rank, Path(name), str(policy), tensor_parallel_size)
            processes.append(context.Process(target=measure, args=args))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        figures = [pipe.recv() for pipe in pipes]
        for process in processes:
            process.join()
    return figures


def main() -> None:
    """Prints a table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.weight_sync", description="Memory that a weight sync takes.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of weight_sync.json")
    options = parser.parse_args()
    results = {
        title: {kind: measure_on_two(sizes, size) for kind, size in _TENSOR_PARALLEL_SIZES.items()}
        for title, sizes in _SIZES.items()
    }
    for title, by_kind in results.items():
        for kind, (first, second) in by_kind.items():
            print(f"{title}, {kind}")
            for name in first:
                print(f"  {name:22} {first[name]:8.1f} MiB  {second[name]:8.1f} MiB")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": platform.machine(), "results": results}
    (options.out / "weight_sync.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

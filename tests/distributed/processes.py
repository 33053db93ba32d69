"""Connected processes, for tests of what they do together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing

# Libraries are read once, in a process that all others are copies of: reading them takes longer than what tests do.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch.distributed.tensor", "appo.commands.lightning_cli"])


def as_processes(work: Callable[..., None], folder: Path, *args: object, num: int = 2) -> None:
    """Runs a function on some connected processes, with its rank as first argument."""
    torch.multiprocessing.start_processes(
        _connected, (num, work, str(folder / "store"), *args), nprocs=num, start_method="forkserver"
    )


def _connected(rank: int, num: int, work: Callable[..., None], store: str, *args: object) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num)
    work(rank, *args)
    dist.destroy_process_group()

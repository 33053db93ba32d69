"""Connected processes, for tests of what they do together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing


def as_processes(work: Callable[..., None], folder: Path, *args: object) -> None:
    """Runs a function on two connected processes, with its rank as first argument."""
    torch.multiprocessing.spawn(_connected, (work, str(folder / "store"), *args), nprocs=2)


def _connected(rank: int, work: Callable[..., None], store: str, *args: object) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    work(rank, *args)
    dist.destroy_process_group()

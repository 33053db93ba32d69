"""Connected processes, for tests of what they do together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing

from tests.copied_processes import CONTEXT


def as_processes(work: Callable[..., None], folder: Path, *args: object, num: int = 2) -> None:
    """Runs a function on some connected processes, with its rank as first argument."""
    torch.multiprocessing.start_processes(
        _connected, (num, work, str(folder / "store"), *args), nprocs=num, start_method=CONTEXT.get_start_method()
    )


def _connected(rank: int, num: int, work: Callable[..., None], store: str, *args: object) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num)
    work(rank, *args)
    dist.destroy_process_group()

"""Connected processes, for tests of what they do together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.copied_processes import CONTEXT


def as_processes(work: Callable[..., None], folder: Path, *args: object, num: int = 2) -> None:
    """Runs a function on some connected processes, with its rank as first argument."""
    torch.multiprocessing.start_processes(
        _connected, (num, work, str(folder / "store"), *args), nprocs=num, start_method=CONTEXT.get_start_method()
    )


def as_first_of(num: int, work: Callable[..., None], *args: object) -> None:
    """Runs a function as the first of many processes, with their number as first argument.

    The others are not there: collectives return at once, and what would have come from others is not defined.
    """
    torch.multiprocessing.start_processes(_as_first_of, (num, work, *args), start_method=CONTEXT.get_start_method())


def _as_first_of(rank: int, num: int, work: Callable[..., None], *args: object) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=num)
    work(num, *args)


def _connected(rank: int, num: int, work: Callable[..., None], store: str, *args: object) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num)
    work(rank, *args)
    dist.destroy_process_group()

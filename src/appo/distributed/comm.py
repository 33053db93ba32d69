"""The processes that train one policy together, and what they tell each other besides weights and gradients.

Lightning starts them and connects them; here they speak on the CPU through a process group of their own, so that an
engine's group is never taken for theirs. A process that has not joined is alone: rank 0 of 1.
"""

from __future__ import annotations

import logging
import re
import subprocess
import threading
import traceback
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import takewhile
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as distributed_c10d
from torch import Tensor

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Rows = TypeVar("Rows", bound=Sized)


class RankError(RuntimeError):
    """Another process has stopped, or did not come in time."""


@dataclass(eq=False)
class _Team:
    """What a process knows of the others."""

    group: dist.ProcessGroup
    timeout: timedelta
    partners: dist.ProcessGroup | None = None
    phase: str = "setup"
    left: threading.Event = field(default_factory=threading.Event)
    watcher: threading.Thread | None = None


# Of the process, as torch.distributed's own state is.
_team: _Team | None = None

_LOOK_AROUND = timedelta(seconds=5)
"""How long each of the others is looked for once one of them was lost."""

_LOST_TAG = 1
"""Of the messages that say so."""

_LOST = re.compile(r"connection|closed by peer|time[d ]*\s?out|broken pipe|monitoredBarrier|gloo|nccl", re.IGNORECASE)
"""In what torch.distributed says when another process does not answer."""

_COLLECTIVES = ("torch.distributed.", "torch.nn.parallel.distributed", "torch.autograd")
"""Modules of torch that call collectives, the backward pass for the gradients of `DistributedDataParallel`."""


def join(world_size: int, timeout_s: float, tensor_parallel_size: int = 1) -> None:
    """Makes this process one of several; all of them call it, after Lightning has connected them.

    Args:
        world_size: of the training; 1 leaves the process alone, whatever group exists.
        timeout_s: seconds that any of them waits for the others.
        tensor_parallel_size: processes, one after the other, that compute every layer together.
    """
    global _team
    if world_size > 1 and _team is None:
        timeout = timedelta(seconds=timeout_s)
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert group is not None
        partners = None
        if tensor_parallel_size > 1:
            partners, _ = dist.new_subgroups(tensor_parallel_size, timeout=timeout, backend="gloo")
        _team = _Team(group, timeout, partners)


def wait_no_longer(group: dist.ProcessGroup | None = None) -> None:
    """Gives a group of several processes the time-out of `join`, which may be too short for getting connected.

    Args:
        group: any that exists, such as that of gradients; none takes the one of all processes.
    """
    if _team is not None:
        # There is no public way but to make the group anew.
        distributed_c10d._set_pg_timeout(_team.timeout, group)


def leave() -> None:
    """The process is alone again."""
    global _team
    if _team is not None:
        _team.left.set()
        if _team.watcher is not None:
            # It holds the group, which must not be left to a thread that is cut off when the process ends.
            _team.watcher.join()
        _team = None


def rank() -> int:
    """Number of this process."""
    return 0 if _team is None else dist.get_rank(_team.group)


def num_ranks() -> int:
    """How many there are."""
    return 1 if _team is None else dist.get_world_size(_team.group)


def tensor_parallel_size() -> int:
    """How many processes compute a layer together."""
    return 1 if _team is None or _team.partners is None else dist.get_world_size(_team.partners)


def data_parallel_size() -> int:
    """How many times the policy is evaluated at the same time, on rows of its own each."""
    return num_ranks() // tensor_parallel_size()


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Every `num_ranks()`-th item, beginning with that of this rank's number."""
    return items[rank() :: num_ranks()]


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in float64; on the CPU."""
    summed = values.detach().to("cpu", torch.float64)
    if _team is not None:
        with _hearing(_team):
            summed = summed.clone()
            dist.all_reduce(summed, group=_team.group)
    return summed


def gather(item: Item) -> list[Item]:
    """What every rank has brought, in the order of ranks, on each of them."""
    if _team is None:
        return [item]
    items = [item] * num_ranks()
    with _hearing(_team):
        dist.all_gather_object(items, item, group=_team.group)
    return items


def pool_tensor_parallel(rows: Rows) -> tuple[list[Rows], slice]:
    """What those have brought that compute a layer together, on each of them.

    Args:
        rows: of this process.

    Returns:
        The rows of each, in the order of ranks; and where those of this one are when all are put one behind the other.
    """
    if _team is None or _team.partners is None:
        return [rows], slice(len(rows))
    parts = [rows] * tensor_parallel_size()
    with _hearing(_team):
        dist.all_gather_object(parts, rows, group=_team.partners)
    start = sum(len(part) for part in parts[: dist.get_rank(_team.partners)])
    return parts, slice(start, start + len(rows))


def gather_on_first(item: Item) -> list[Item]:
    """What every rank has brought, in the order of ranks, on rank 0; nothing elsewhere."""
    if _team is None:
        return [item]
    items: list[Item] | None = [item] * num_ranks() if rank() == 0 else None
    with _hearing(_team):
        dist.gather_object(item, items, dst=0, group=_team.group)
    return items or []


def from_first(item: Item) -> Item:
    """What rank 0 has brought, on each of them."""
    items = [item]
    if _team is not None:
        with _hearing(_team):
            dist.broadcast_object_list(items, src=0, group=_team.group)
    return items[0]


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Work that all ranks do at the same time; nobody goes on before the last one has done it.

    Raises:
        RankError: if a rank has stopped, or does not come to the end within the time-out after this one.
    """
    if _team is None:
        yield
        return
    before, _team.phase = _team.phase, name
    try:
        with _hearing(_team):
            yield
            dist.monitored_barrier(_team.group, _team.timeout, wait_all_ranks=True)
    except RankError:
        raise
    except Exception as error:
        error.add_note(f"raised on rank {rank()} of {num_ranks()} in phase {name!r}")
        raise
    _team.phase = before


def watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Says which rank it was, and in which phase, when a process that this one has started ends with an error.

    The run is then ended by the launcher that started them, without a word of its own.

    Args:
        processes: of rank 1 and the following ones.
    """
    if _team is not None and processes:
        _team.watcher = threading.Thread(target=_watch, args=(_team, list(processes)), name="ranks", daemon=True)
        _team.watcher.start()


def _watch(team: _Team, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while not team.left.wait(0.2):
        for number, process in enumerate(processes, start=1):
            if process.poll():
                log.error(
                    "rank %d ended with exit code %d in phase %r; the run ends", number, process.returncode, team.phase
                )
                return


@contextmanager
def _hearing(team: _Team) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _tells_of_a_lost_rank(error):
            raise
        raise _lost(team, error) from error


def _tells_of_a_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective of torch has failed because another process does not answer.

    Gloo's errors are plain `RuntimeError`, and only their text tells them from those of a wrong argument. It is read
    where torch itself has raised the error: what a user's code says, of a time-out of its own, is never looked at.
    """
    if isinstance(error, dist.DistError):
        return True
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    innermost = takewhile(lambda module: module.startswith("torch."), reversed(modules))
    return any(module.startswith(_COLLECTIVES) for module in innermost) and _LOST.search(str(error)) is not None


def _lost(team: _Team, error: RuntimeError) -> RankError:
    """Names those that do not answer, as far as this rank can tell: only rank 0 hears from each of the others."""
    named = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
    lost = named[1].strip(" ,") if named else ", ".join(map(str, _silent(team)))
    who = f"rank {lost}" if lost and rank() == 0 else "another rank"
    return RankError(
        f"{who} has stopped or did not answer rank {rank()} of {num_ranks()} in phase {team.phase!r}, within "
        f"rollout.rank_timeout_s = {team.timeout.total_seconds():g} at most"
    )


def _silent(team: _Team) -> list[int]:
    """On rank 0, the ranks that do not say within a few seconds that they, too, have lost somebody."""
    word, silent = torch.zeros(1), []
    for other in range(1, num_ranks()) if rank() == 0 else [0]:
        try:
            # Connections to a process that has ended are closed, which shows at once.
            talk = dist.irecv if rank() == 0 else dist.isend
            work = talk(word, other, team.group, _LOST_TAG)
            assert work is not None
            work.wait(_LOOK_AROUND)
        except RuntimeError:
            silent.append(other)
    return silent

"""The processes that train one policy together, and what they tell each other besides weights and gradients.

Lightning starts them and connects them; here they speak on the CPU through a process group of their own, so that an
engine's group is never taken for theirs. A process that has not joined is alone: rank 0 of 1.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
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
Items = TypeVar("Items", bound=Sized)


class RankError(RuntimeError):
    """Another process has stopped, or did not come in time."""


@dataclass(eq=False)
class _World:
    """What a process knows of the others."""

    group: dist.ProcessGroup
    timeout: timedelta
    tensor_parallel: dist.ProcessGroup | None = None
    phase: str = "setup"
    left: threading.Event = field(default_factory=threading.Event)
    watcher: threading.Thread | None = None


# Of the process, as torch.distributed's own state is.
_world: _World | None = None

_LOOK_AROUND = timedelta(seconds=5)
"""How long each of the others is looked for once one of them was lost."""

_SHORTLY = 0.9
"""Of the time-out that a rank is in a phase before it says so."""

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
        tensor_parallel_size: processes, one after the other, of a tensor-parallel group.
    """
    global _world
    if world_size > 1 and _world is None:
        timeout = timedelta(seconds=timeout_s)
        group = dist.new_group(backend="gloo", timeout=timeout)
        assert group is not None
        tensor_parallel = None
        if tensor_parallel_size > 1:
            tensor_parallel, _ = dist.new_subgroups(tensor_parallel_size, timeout=timeout, backend="gloo")
        _world = _World(group, timeout, tensor_parallel)


def set_timeout(group: dist.ProcessGroup | None = None) -> None:
    """Gives a process group the time-out of `join`, which may be too short for getting connected.

    Args:
        group: such as that of gradients. None: the default one.
    """
    if _world is not None:
        # There is no public way but to make the group anew.
        distributed_c10d._set_pg_timeout(_world.timeout, group)


def leave() -> None:
    """Leaves the process alone again."""
    global _world
    if _world is not None:
        _world.left.set()
        if _world.watcher is not None:
            # It holds the group, which must not be left to a thread that is cut off when the process ends.
            _world.watcher.join()
        _world = None


def rank() -> int:
    """Says which process this is, from 0."""
    return 0 if _world is None else dist.get_rank(_world.group)


def num_ranks() -> int:
    """Counts the processes of the training."""
    return 1 if _world is None else dist.get_world_size(_world.group)


def tensor_parallel_size() -> int:
    """Counts the processes of a tensor-parallel group, which computes every layer together."""
    return 1 if _world is None or _world.tensor_parallel is None else dist.get_world_size(_world.tensor_parallel)


def data_parallel_size() -> int:
    """Counts the evaluations of the policy at the same time, each of a shard of the global batch."""
    return num_ranks() // tensor_parallel_size()


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Takes this rank's data-parallel shard: every `num_ranks()`-th item, beginning with that of its number."""
    return items[rank() :: num_ranks()]


def all_reduce(values: Tensor) -> Tensor:
    """Adds up a tensor over all ranks, in float64 on the CPU."""
    summed = values.detach().to("cpu", torch.float64)
    if _world is not None:
        with _naming_lost_ranks(_world):
            summed = summed.clone()
            dist.all_reduce(summed, group=_world.group)
    return summed


class PendingSum:
    """The sum of a tensor over all ranks, in float64 on the CPU, which each adds to when it comes to it.

    All ranks begin sums in the same order, and no other collective of this module before they have what they began.

    Args:
        values: of this rank.
    """

    def __init__(self, values: Tensor) -> None:
        self._summed = values.detach().to("cpu", torch.float64, copy=True)
        self._work: dist.Work | None = None
        if _world is not None:
            with _naming_lost_ranks(_world):
                self._work = dist.all_reduce(self._summed, group=_world.group, async_op=True)

    @property
    def is_there(self) -> bool:
        """Whether the last rank has added its values, or was lost."""
        return self._work is None or self._work.is_completed()

    def wait(self) -> Tensor:
        """The sum, once it is there.

        Raises:
            RankError: if a rank has stopped, or does not come in time.
        """
        if self._work is not None:
            assert _world is not None
            try:
                self._work.wait()
            except RuntimeError as error:
                # Whatever it says: nobody's code but that of the connection runs here.
                raise _lost(_world, error) from error
        return self._summed


def all_gather(item: Item) -> list[Item]:
    """Lists what every rank has brought, in the order of ranks, on each of them."""
    if _world is None:
        return [item]
    items = [item] * num_ranks()
    with _naming_lost_ranks(_world):
        dist.all_gather_object(items, item, group=_world.group)
    return items


def all_gather_tensor_parallel(items: Items) -> tuple[list[Items], slice]:
    """Lists what the ranks of this tensor-parallel group have brought, on each of them.

    Args:
        items: of this process.

    Returns:
        The items of each, in the order of ranks; and where those of this one are when all are put one behind the other.
    """
    if _world is None or _world.tensor_parallel is None:
        return [items], slice(len(items))
    parts = [items] * tensor_parallel_size()
    with _naming_lost_ranks(_world):
        dist.all_gather_object(parts, items, group=_world.tensor_parallel)
    start = sum(len(part) for part in parts[: dist.get_rank(_world.tensor_parallel)])
    return parts, slice(start, start + len(items))


def gather_on_first(item: Item) -> list[Item]:
    """Lists what every rank has brought, in the order of ranks, on rank 0; nothing elsewhere."""
    if _world is None:
        return [item]
    items: list[Item] | None = [item] * num_ranks() if rank() == 0 else None
    with _naming_lost_ranks(_world):
        dist.gather_object(item, items, dst=0, group=_world.group)
    return items or []


def broadcast(item: Item) -> Item:
    """Gives every rank what rank 0 has brought."""
    items = [item]
    if _world is not None:
        with _naming_lost_ranks(_world):
            dist.broadcast_object_list(items, src=0, group=_world.group)
    return items[0]


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Names what all ranks do at the same time; nobody goes on before the last one has done it.

    A rank that is in it for nearly the time-out says so, and where it is.

    Raises:
        RankError: if a rank has stopped, or does not come to the end within the time-out after this one.
    """
    if _world is None:
        yield
        return
    before, _world.phase = _world.phase, name
    patience_s = _SHORTLY * _world.timeout.total_seconds()
    alarm = threading.Timer(patience_s, _tell_of_waiting, (name, patience_s, threading.get_ident()))
    alarm.daemon = True
    alarm.start()
    try:
        with _naming_lost_ranks(_world):
            yield
            dist.monitored_barrier(_world.group, _world.timeout, wait_all_ranks=True)
    except RankError:
        raise
    except Exception as error:
        error.add_note(f"raised on rank {rank()} of {num_ranks()} in phase {name!r}")
        raise
    finally:
        alarm.cancel()
    _world.phase = before


def _tell_of_waiting(name: str, seconds: float, thread: int) -> None:
    """Says where this rank is: a collective of GPUs that waits too long ends the process, and raises no error."""
    stack = "".join(traceback.format_stack(sys._current_frames().get(thread)))
    message = "rank %d of %d has been in phase %r for %g s of rollout.rank_timeout_s; it is at\n%s"
    log.warning(message, rank(), num_ranks(), name, seconds, stack)


def watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Says which rank it was, and in which phase, when a process that this one has started ends with an error.

    The run is then ended by the launcher that started them, without a word of its own.

    Args:
        processes: of rank 1 and the following ones.
    """
    if _world is not None and processes:
        watched = _world, list(processes)
        _world.watcher = threading.Thread(target=_watch, args=watched, name="ranks", daemon=True)
        _world.watcher.start()


def _watch(world: _World, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while not world.left.wait(0.2):
        for number, process in enumerate(processes, start=1):
            if process.poll():
                message = "rank %d ended with exit code %d in phase %r; the run ends"
                log.error(message, number, process.returncode, world.phase)
                return


@contextmanager
def _naming_lost_ranks(world: _World) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not _tells_of_a_lost_rank(error):
            raise
        raise _lost(world, error) from error


def _tells_of_a_lost_rank(error: RuntimeError) -> bool:
    """Says whether a collective of torch has failed because another process does not answer.

    Gloo's errors are plain `RuntimeError`, and only their text tells them from those of a wrong argument. It is read
    where torch itself has raised the error: what a user's code says, of a time-out of its own, is never looked at.
    """
    if isinstance(error, dist.DistError):
        return True
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    innermost = takewhile(lambda module: module.startswith("torch."), reversed(modules))
    return any(module.startswith(_COLLECTIVES) for module in innermost) and _LOST.search(str(error)) is not None


def _lost(world: _World, error: RuntimeError) -> RankError:
    """Names those that do not answer, as far as this rank can tell: only rank 0 hears from each of the others."""
    named = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
    lost = named[1].strip(" ,") if named else ", ".join(map(str, _silent(world)))
    who = f"rank {lost}" if lost and rank() == 0 else "another rank"
    return RankError(
        f"{who} has stopped or did not answer rank {rank()} of {num_ranks()} in phase {world.phase!r}, within "
        f"rollout.rank_timeout_s = {world.timeout.total_seconds():g} at most"
    )


def _silent(world: _World) -> list[int]:
    """Lists, on rank 0, the ranks that do not say within a few seconds that they, too, have lost somebody."""
    word, silent = torch.zeros(1), []
    for other in range(1, num_ranks()) if rank() == 0 else [0]:
        try:
            # Connections to a process that has ended are closed, which shows at once.
            talk = dist.irecv if rank() == 0 else dist.isend
            work = talk(word, other, world.group, _LOST_TAG)
            assert work is not None
            work.wait(_LOOK_AROUND)
        except RuntimeError:
            silent.append(other)
    return silent

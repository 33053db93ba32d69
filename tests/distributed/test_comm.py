from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from appo.distributed import comm
from tests.distributed.processes import as_processes

MESSAGES = (
    "rollout.rewards.timeout_s = 1: the reward timed out",
    "Connection closed by peer",
    "[gloo/transport/tcp/pair.cc:553] Connection closed by peer",
    "NCCL error: unhandled system error",
    "[Errno 32] Broken pipe",
    "Ranks 1 failed to pass monitoredBarrier in 3000 ms: timeout",
)
PHASES = ("sampling", "update", "weights", "metrics", "validation")


def directly(error: Exception) -> None:
    raise error


def in_a_thread(error: Exception) -> None:
    with ThreadPoolExecutor() as pool:
        pool.submit(directly, error).result()


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, error):
        ctx.error = error
        return tensor.clone()

    @staticmethod
    def backward(ctx, *gradients):
        raise ctx.error


def in_the_backward_pass(error: Exception) -> None:
    model = DistributedDataParallel(nn.Linear(2, 2))
    Failing.apply(model(torch.ones(1, 2)).sum(), error).backward()


class Unsendable:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self):
        raise self.error


def while_it_is_sent(error: Exception) -> None:
    comm.all_gather(Unsendable(error))


PLACES: tuple[Callable[[Exception], None], ...] = (directly, in_a_thread, in_the_backward_pass, while_it_is_sent)


def fail_alike(rank: int) -> None:
    comm.join(2, timeout_s=20)
    for message in MESSAGES:
        for kind in (RuntimeError, TimeoutError, ConnectionError, ValueError):
            for phase in PHASES:
                for place in PLACES:
                    error = kind(message)
                    with pytest.raises(kind) as raised, comm.phase(phase):
                        place(error)
                    assert raised.value is error, (message, kind, place)
                    assert f"raised on rank {rank} of 2 in phase {phase!r}" in error.__notes__


def test_an_error_of_the_users_own_stays_what_it_is_whatever_it_says(tmp_path):
    as_processes(fail_alike, tmp_path)


def mix_tensors(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    comm.join(2, timeout_s=20)
    tensor = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (2,)), [Replicate()])
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"), comm.phase("update"):
        tensor + torch.ones(2)


def test_a_wrong_argument_of_torch_is_no_lost_process(tmp_path):
    as_processes(mix_tensors, tmp_path)


class Heard(logging.Handler):
    """Notes what is logged, and that there was something."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.event.set()


def hold_up(heard: Heard) -> None:
    assert heard.event.wait(60)


def be_late(rank: int) -> None:
    comm.join(2, timeout_s=3)
    heard = Heard()
    comm.log.addHandler(heard)
    with comm.phase("sampling"):
        pass
    if rank == 0:
        dist.barrier()  # does not end for as long as rank 1 is in its phase, as NCCL's would not
    with comm.phase("update"):
        if rank == 1:
            hold_up(heard)
            dist.barrier()
    # Nobody speaks once a phase is over.
    assert all(thread.finished.is_set() for thread in threading.enumerate() if isinstance(thread, threading.Timer))
    assert len(heard.texts) == rank
    if rank == 1:
        assert heard.texts[0].startswith("rank 1 of 2 has been in phase 'update' for 2.7 s of rollout.rank_timeout_s")
        assert "in hold_up" in heard.texts[0]
    comm.leave()


def test_a_process_that_is_late_says_where_it_is_before_others_give_it_up(tmp_path):
    as_processes(be_late, tmp_path)


def reduce_gradients(model: nn.Module) -> None:
    model(torch.ones(1, 2)).sum().backward()


def sum_gradients(model: nn.Module) -> None:
    dist.all_reduce(torch.ones(1))


def total(model: nn.Module) -> None:
    comm.all_reduce(torch.ones(1))


def begin_a_sum(model: nn.Module) -> None:
    comm.PendingSum(torch.ones(1)).wait()


def meet(model: nn.Module) -> None:
    pass


def lose_a_rank(rank: int, work: Callable[[nn.Module], None]) -> None:
    comm.join(2, timeout_s=5)
    model = DistributedDataParallel(nn.Linear(2, 2))
    if rank == 1:
        os._exit(0)
    with pytest.raises(comm.RankError, match="rank 1 has stopped or did not answer rank 0 of 2 in phase 'update'"):  # noqa: SIM117
        with comm.phase("update"):
            work(model)


@pytest.mark.parametrize("work", [reduce_gradients, sum_gradients, total, begin_a_sum, meet])
def test_a_collective_that_fails_names_the_process_that_has_stopped(tmp_path, work):
    as_processes(lose_a_rank, tmp_path, work)

"""Steps that train on two devices.

On GPUs the command line starts the processes as it does for a user; on a CPU they are copies of the step's, which has
read the libraries: it takes several times longer than what they do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from appo.commands import cli
from appo.commands.doctor.configs import write_config
from appo.commands.doctor.engines import vllm_engine
from appo.commands.doctor.policies import policy_folder
from appo.commands.doctor.result import Figures, Machine, SkipStepError, StepError
from appo.commands.doctor.runs import check_resumed, policy_version
from appo.commands.errors import in_one_line
from appo.engines import Engine, HFEngine, Request

_LOST_S = 60.0
"""Seconds within which a run must end once one of its processes is lost."""

_TIMEOUT_S, _LOST_TIMEOUT_S = 60, 5
"""Seconds that processes wait for one another: in most steps, and where one of them is going to be lost."""

_LAST_LINES = 4


def other_device(machine: Machine, figures: Figures) -> None:
    """One process, on the second device."""
    machine.needs_gpu("a CPU has one device")
    machine.needs_several()
    _fit(machine, figures, "other-device", devices=[1])
    used = torch.cuda.mem_get_info(0)
    figures["GiB taken of device 0"] = (used[1] - used[0]) / 2**30


def ddp(machine: Machine, figures: Figures) -> None:
    """An update and an evaluation, of which one metric is known to one process alone."""
    machine.needs_several()
    _fit(machine, figures, "ranks-ddp", strategy="ddp", max_epochs=1, check_val_every_n_epoch=1)


def fsdp2(machine: Machine, figures: Figures) -> None:
    """An update, and another one from its sharded checkpoint."""
    machine.needs_several()
    _resumed(machine, figures, "ranks-fsdp2", strategy="fsdp2")


def offload(machine: Machine, figures: Figures) -> None:
    """The same with shards on the CPU."""
    machine.needs_gpu("shards of a CPU rest there")
    machine.needs_several()
    _resumed(machine, figures, "ranks-offload", "--model.sharding.cpu_offload=true", strategy="fsdp2")


def tensor_parallel(machine: Machine, figures: Figures) -> None:
    """An update of a policy whose layers two processes compute together."""
    machine.needs_several()
    strategy = {
        "class_path": "ModelParallelStrategy",
        "init_args": {"data_parallel_size": 1, "tensor_parallel_size": 2},
    }
    _fit(machine, figures, "ranks-tensor", strategy=strategy, max_epochs=1)


def killed(machine: Machine, figures: Figures) -> None:
    """The second process is killed while it trains."""
    _lost(machine, figures, "ranks-kill", signal.SIGKILL)


def stopped(machine: Machine, figures: Figures) -> None:
    """The second process does not answer any more."""
    _lost(machine, figures, "ranks-stop", signal.SIGSTOP)


def _resumed(machine: Machine, figures: Figures, name: str, *options: str, **trainer: Any) -> None:
    folder = machine.folder / name
    _fit(machine, figures, name, *options, max_epochs=1, **trainer)
    before = policy_version(folder)
    _fit(machine, figures, name, *options, "--ckpt_path=last", **trainer)
    check_resumed(before, policy_version(folder), figures)


def _fit(machine: Machine, figures: Figures, name: str, *options: str, **trainer: Any) -> None:
    """Trains to the end.

    Raises:
        StepError: if the run ends with an error.
    """
    started = monotonic()
    run = _start(machine, machine.folder / name, _TIMEOUT_S, *options, **trainer)
    code = run.wait()
    if code != 0:
        raise StepError(f"the run ended with exit code {code}: {run.last_words()}", f"see {run.log}")
    figures["seconds resumed" if "--ckpt_path=last" in options else "seconds"] = monotonic() - started


def _start(machine: Machine, folder: Path, timeout_s: int, *options: str, **trainer: Any) -> _Run:
    """Starts ``appo fit`` on two devices, or as `trainer` says."""
    devices: Any = [0, 1] if machine.is_gpu else 2
    config = write_config(machine, folder, **{"devices": devices, **trainer})
    args = ["fit", "--config", str(config), f"--rollout.rank_timeout_s={timeout_s}", *options]
    return (_Started if machine.is_gpu else _Copied)(args, folder / "doctor.log")


class _Run(ABC):
    """Processes of one run, which write to one log.

    Args:
        args: of ``appo``.
        log: is added to.
    """

    def __init__(self, args: Sequence[str], log: Path) -> None:
        self.log = log

    @abstractmethod
    def wait(self, limit_s: float | None = None) -> int | None:
        """The exit code of the first process; None if it runs on after so many seconds."""

    def last_words(self) -> str:
        """The end of the log."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


class _Started(_Run):
    """The first process starts the other one."""

    def __init__(self, args: Sequence[str], log: Path) -> None:
        super().__init__(args, log)
        with log.open("a") as file:
            self._first = subprocess.Popen([sys.executable, "-m", "appo", *args], stdout=file, stderr=file)

    def wait(self, limit_s: float | None = None) -> int | None:
        try:
            return self._first.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None


class _Copied(_Run):
    """Both are started from outside, as by ``torchrun``."""

    def __init__(self, args: Sequence[str], log: Path) -> None:
        super().__init__(args, log)
        # A copy has none of the threads that would compute for it, and waits for them; with one there are no others.
        torch.set_num_threads(1)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        environments = [
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)} for rank in (0, 1)
        ]
        ranks = [context.Process(target=_as_rank, args=(args, log, environment)) for environment in environments]
        for rank in ranks:
            rank.start()
        self._first = ranks[0]

    def wait(self, limit_s: float | None = None) -> int | None:
        self._first.join(limit_s)
        return self._first.exitcode


def _as_rank(args: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # A copy makes torch's pool of threads anew when it is first asked for; of two threads that ask at once, one finds
    # none ("Invalid thread pool").
    torch.set_num_threads(1)
    try:
        with in_one_line():
            cli.run([*args])
    except Exception:
        # It says whose error it is, which multiprocessing does not.
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        atexit._run_exitfuncs()


def _lost(machine: Machine, figures: Figures, name: str, signal_number: signal.Signals) -> None:
    """Sends a signal to the second process of a run, which must end by itself with an error."""
    machine.needs_several()
    folder = machine.folder / name
    run = _start(machine, folder, _LOST_TIMEOUT_S, strategy="ddp", max_epochs=100_000)
    pid = folder / "rank_1.pid"
    while not (pid.exists() and pid.read_text()):
        if run.wait(0.2) is not None:
            raise StepError(f"the run ended before it had begun to train: {run.last_words()}", f"see {run.log}")
    second = int(pid.read_text())
    os.kill(second, signal_number)
    started = monotonic()
    try:
        code = run.wait(_LOST_S)
    finally:
        with suppress(ProcessLookupError):
            os.kill(second, signal.SIGKILL)
    if code is None:
        raise StepError(f"the run goes on without its second process for more than {_LOST_S:g} s", f"see {run.log}")
    figures |= {"seconds until the end": monotonic() - started, "exit code": code}
    text = run.log.read_text(errors="replace")
    named = [line for line in text.splitlines() if "rank 1" in line or "another rank" in line]
    if code == 0 or not named:
        raise StepError("the run must end with an error that names the lost process", f"see {run.log}")
    figures["said"] = named[-1][-200:]


def engine_stop(machine: Machine, figures: Figures) -> None:
    """Two processes with an engine each go on together after it has stopped, as after an evaluation."""
    machine.needs_several()
    policy_folder(machine)  # written by one process, before two read it
    _after_engines(machine, "HFEngine")
    if not machine.is_gpu:
        return  # two of vLLM for CPUs take minutes to start
    try:
        vllm_engine(machine, torch.float32)
    except SkipStepError as error:
        figures["VLLMEngine"] = f"left out: {error}"
    else:
        _after_engines(machine, "VLLMEngine")
        figures["VLLMEngine"] = "stopped as well"


def _after_engines(machine: Machine, name: str) -> None:
    store = machine.folder / f"store_{name}"
    store.unlink(missing_ok=True)
    torch.set_num_threads(1)
    method = "spawn" if machine.is_gpu else "fork"
    start_processes(_with_engine, (machine, name, str(store)), nprocs=2, start_method=method)


def _with_engine(rank: int, machine: Machine, name: str, store: str) -> None:
    backend = "nccl" if machine.is_gpu else "gloo"
    device = torch.device(machine.device.type, rank) if machine.is_gpu else machine.device
    if machine.is_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=2)
    engine: Engine = HFEngine(device=str(device)) if name == "HFEngine" else vllm_engine(machine, torch.float32)
    engine.start(str(policy_folder(machine)))
    engine.submit(Request(0, (5, 6, 7), 8))
    while engine.num_in_flight:
        engine.step()
    engine.stop()
    total = torch.full((4,), float(rank + 1), device=device)
    dist.all_reduce(total)
    if total.tolist() != [3.0] * 4:
        raise RuntimeError(f"a sum over two processes after {name} is {total.tolist()}")
    dist.destroy_process_group()

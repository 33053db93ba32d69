"""What goes wrong in the iterations of a soak: parts of a run that fail as drawn, and a callback that draws."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch

from appo.core.trajectory import RewardResult, Trajectory
from appo.engines.vllm_server.pool import ServerPool, Weights
from appo.losses import ClippedLoss
from appo.tools import HTTPSearch, MCPTools, ToolError, ToolRunner
from appo.training.callbacks.evaluation import rollout_callback
from tests.engines.vllm_server.test_faulty_servers import BODY, GARBAGE, GENERATE, RELOAD, FaultyServer, serving
from tests.leftovers import children, shared_memory
from tests.small_run import EvenTokens
from tests.tools.mcp.test_tools import SERVER
from tests.tools.search.endpoint import Reply, endpoint

SURVIVED = {
    "reward raises": "reward",
    "reward returns NaN": "reward",
    "reward hangs": "reward",
    "gradient is not finite": "loss",
    "tool process dies": "python",
    "tool process hangs": "python",
    "tool process floods": "python",
    "clock jumps": "clock",
    "process is stopped": "stop",
    **{f"server in sampling: {name}": "server" for name in GARBAGE},
    "server in a weight update: hang": "server",
    "server in a weight update: die": "server",
    "MCP server dies": "mcp",
    "MCP server hangs": "mcp",
    "search is down": "search",
    "search answers garbage": "search",
    "search hangs": "search",
}
"""Faults that a run goes on from, and what each hits."""

ENDING = ("SIGTERM", "SIGTERM twice", "SIGINT", "SIGINT twice", "SIGKILL", "disk full", "memory spent", "SIGUSR1")
"""Faults that end the process; the run goes on from its last checkpoint. SLURM sends the last one."""

_CODE = {
    "tool process dies": "print(0)",
    "tool process hangs": "while True: pass",
    "tool process floods": "print('x' * 10**7)",
}

_REPLIES = {
    "search is down": Reply(status=503),
    "search answers garbage": Reply(body=b"<html>"),
    "search hangs": Reply(hangs=True),
}


@dataclass
class _Now:
    """The fault of this iteration."""

    kind: str = ""
    ending: str = ""
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, prefix: str) -> str:
        """The fault if it is of a kind, once."""
        if SURVIVED.get(self.kind) != prefix:
            return ""
        kind, self.kind = self.kind, ""
        return kind


NOW = _Now()


@dataclass(frozen=True)
class FaultyReward(EvenTokens):
    def __call__(self, trajectory: Trajectory) -> RewardResult:
        fault = NOW.take("reward")
        if fault == "reward raises":
            raise ConnectionError("no judge today")
        if fault == "reward hangs":
            NOW.over.wait()
        result = super().__call__(trajectory)
        return RewardResult(float("nan"), result.parts) if fault == "reward returns NaN" else result


@dataclass(frozen=True)
class FaultyLoss(ClippedLoss):
    def __call__(self, log_probs: torch.Tensor, entropies: torch.Tensor, batch: Any) -> Any:
        if NOW.ending == "memory spent":
            torch.empty(2**50)
        share, metrics = super().__call__(log_probs, entropies, batch)
        return (share * float("nan") if NOW.take("loss") else share), metrics


class Faults(L.Callback):
    """Draws a fault for every iteration, by its number, and writes down what the process holds behind each.

    Args:
        levels: a file of JSON lines.
        ending: one of `ENDING`, or nothing.
        at: iteration in which that happens.
    """

    def __init__(self, levels: str, ending: str = "", at: int = -1) -> None:
        self.levels, self.ending, self.at = Path(levels), ending, at
        self._clock: Callable[[], float] = time.time

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._random = random.Random(trainer.current_epoch)
        NOW.kind, NOW.over = self._random.choice(list(SURVIVED)), threading.Event()
        self._kind = NOW.kind
        if NOW.take("clock"):
            offset = self._random.uniform(-1e6, 1e6)
            time.time = lambda: self._clock() + offset
        if NOW.take("stop"):
            pid = os.getpid()
            subprocess.run(["sh", "-c", f"kill -STOP {pid}; sleep 0.3; kill -CONT {pid}"], check=True)
        if trainer.current_epoch == self.at:
            self._end()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        NOW.over.set()
        time.time = self._clock
        if fault := NOW.take("python"):
            if fault == "tool process dies":
                os.kill(max(children()), signal.SIGKILL)
            tools = rollout_callback(trainer).sampler.tools
            assert len(_answer(tools, _CODE[fault])) < 20_000
            # The first of them may meet the process that died, which is replaced then.
            assert "1" in [_answer(tools, "print(1)") for _ in range(3)]
        if fault := NOW.take("server"):
            _ask_faulty_server(*fault.removeprefix("server in ").split(": "))
        if fault := NOW.take("mcp"):
            _call_lost_server(fault)
        if fault := NOW.take("search"):
            _search_faulty_service(fault)
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        level = {
            "iteration": trainer.current_epoch,
            "pid": os.getpid(),
            "fault": self._kind,
            "memory_kib": int(status["VmRSS"].split()[0]),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": int(status["Threads"]),
            "processes": len(children()),
            "shared_memory": len(shared_memory()),
        }
        with self.levels.open("a") as file:
            file.write(json.dumps(level) + "\n")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if self.ending == "SIGINT twice":
            signal.raise_signal(signal.SIGINT)

    def _end(self) -> None:
        """Lets it happen now, or somewhere in the iteration."""
        if self.ending == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._random.choice([500, 50_000]), resource.RLIM_INFINITY))
        elif self.ending == "memory spent":
            NOW.ending = self.ending
        else:
            name, _, twice = self.ending.partition(" ")
            number = signal.Signals[name]
            for _ in range(1 + (name == "SIGTERM" and twice != "")):
                timer = threading.Timer(self._random.uniform(0.0, 0.3), os.kill, (os.getpid(), number))
                timer.daemon = True
                timer.start()


def _answer(tools: ToolRunner, code: str) -> str:
    tools.submit(0, "python", code)
    (answer,) = tools.finished(None)
    return answer.text


def _ask_faulty_server(phase: str, fault: str) -> None:
    """Brings weights to a server over HTTP, and has it sample, with a fault in one of them."""
    path = GENERATE if phase == "sampling" else RELOAD

    async def talk(address: str) -> None:
        pool = ServerPool([address], {}, 1.0, 60.0, Weights("run-0", Path("/nowhere/0")))
        await pool.switch(Weights("run-1", Path("/nowhere/1")))
        await pool.generate(BODY, b"")
        await pool.close()

    with serving(FaultyServer(path, GARBAGE[fault])) as address:
        asyncio.run(talk(address))


def _call_lost_server(fault: str) -> None:
    """Calls a tool of an MCP server that is gone, or stands still; the next call finds it."""
    provider = MCPTools(command=SERVER, timeout_s=1.0 if fault == "MCP server hangs" else 20.0)
    provider.start()
    try:
        tools = {tool.name: tool for tool in provider.tools}
        (process, *_) = json.loads(tools["where"](""))
        os.kill(process, signal.SIGSTOP if fault == "MCP server hangs" else signal.SIGKILL)
        with suppress(ToolError):
            raise AssertionError(f"{fault}, and answered {tools['shout']('a')}")
        if fault == "MCP server hangs":
            os.kill(process, signal.SIGCONT)
        tools["shout"].timeout_s = 20.0
        assert tools["shout"]("a") == "A"
    finally:
        provider.stop()


def _search_faulty_service(fault: str) -> None:
    """Searches once more than the service is faulty."""
    replies = [_REPLIES[fault], Reply({"results": [{"text": "found"}]})]
    with endpoint(lambda number, _: replies[min(number, 1)]) as served:
        backend = HTTPSearch(served.url, request_timeout_s=0.5, max_attempts=1)
        backend.start()
        try:
            with suppress(ToolError):
                raise AssertionError(f"{fault}, and found {backend.search('x', 1)}")
            assert backend.search("x", 1) == ["found"]
        finally:
            backend.stop()

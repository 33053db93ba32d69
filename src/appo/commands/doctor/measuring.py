"""Time and peak memory of work on a device."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

_MIB = 2**20


@dataclass(frozen=True)
class Measurement:
    """What a piece of work took.

    Attributes:
        result: of its last run.
        milliseconds: of the fastest run.
        peak_mib: of device memory, over what was taken before; None on a CPU.
    """

    result: Any
    milliseconds: float
    peak_mib: float | None

    def __str__(self) -> str:
        peak = "" if self.peak_mib is None else f", {self.peak_mib:,.0f} MiB"
        return f"{self.milliseconds:.2f} ms{peak}"


def measure(device: torch.device, work: Callable[[], Any], repeats: int = 3) -> Measurement:
    """Runs work once to warm up and then some times more.

    Args:
        device: that it runs on.
        work: called without arguments.
        repeats: timed runs.
    """
    work()
    is_gpu = device.type == "cuda"
    before = 0
    if is_gpu:
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    seconds, result = float("inf"), None
    for _ in range(repeats):
        result = None
        started = perf_counter()
        result = work()
        if is_gpu:
            torch.cuda.synchronize(device)
        seconds = min(seconds, perf_counter() - started)
    peak = (torch.cuda.max_memory_allocated(device) - before) / _MIB if is_gpu else None
    return Measurement(result, 1000.0 * seconds, peak)

"""Measures what a call of `PythonTool` costs: calls a second of ``print(1 + 1)``, and how long one takes.

A thread for each call at once asks again as soon as it is answered. The figures are medians over rounds, after one
round that does not count. What isolation was in force stands in the report: figures without it say little.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from appo.tools import PythonTool

CODE = "print(1+1)"


@dataclass(frozen=True)
class Result:
    """Medians over rounds; a latency is that of one call, in milliseconds."""

    parallel: int
    calls_per_s: float
    p50_ms: float
    p95_ms: float


def run_round(tool: PythonTool, parallel: int, num_calls: int) -> tuple[float, list[float]]:
    """Makes `num_calls` calls and returns the seconds of them all and of each."""

    def call(_: int) -> float:
        begin = time.perf_counter()
        result = tool(CODE)
        assert result == "2", result
        return time.perf_counter() - begin

    with ThreadPoolExecutor(parallel) as pool:
        begin = time.perf_counter()
        latencies = list(pool.map(call, range(num_calls)))
        return time.perf_counter() - begin, latencies


def measure(tool: PythonTool, parallel: int, num_calls: int, rounds: int) -> Result:
    """Takes the medians over rounds."""
    run_round(tool, parallel, num_calls)
    runs = [run_round(tool, parallel, num_calls) for _ in range(rounds)]
    quantiles = [statistics.quantiles(latencies, n=20) for _, latencies in runs]
    return Result(
        parallel,
        round(num_calls / statistics.median(seconds for seconds, _ in runs), 1),
        round(1e3 * statistics.median(cuts[9] for cuts in quantiles), 2),
        round(1e3 * statistics.median(cuts[18] for cuts in quantiles), 2),
    )


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.python_tool", description="Calls a second of PythonTool.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of python_tool.json")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--calls", type=int, default=200, help="calls of a round")
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 8], help="calls at once")
    parser.add_argument("--preload", nargs="*", default=[], help="modules to preload, installed packages included")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tool = PythonTool(timeout_s=30.0, packages=bool(options.preload), preload=options.preload)
    tool.start()
    try:
        results = [measure(tool, parallel, options.calls, options.rounds) for parallel in options.parallel]
        isolation = tool.isolation
    finally:
        tool.stop()
    print(f"{'at once':>7} {'calls/s':>8} {'p50 ms':>7} {'p95 ms':>7}")
    for result in results:
        print(f"{result.parallel:7} {result.calls_per_s:8.1f} {result.p50_ms:7.2f} {result.p95_ms:7.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "code": CODE,
        "isolation": isolation,
        "preload": options.preload,
        "rounds": options.rounds,
        "calls": options.calls,
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "results": [asdict(result) for result in results],
    }
    (options.out / "python_tool.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

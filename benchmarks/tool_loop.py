"""Measures how long the engine has nothing to do while tools answer.

`HFEngine` samples from a random tiny policy; a turn that brings a certain text is a call, so turns have random
lengths, and every call takes 0.2 s. Each trajectory makes its calls one after the other, and all of them are in flight
at once. The engine is idle while none of them has anything to sample; that includes the end of a run, when the last
trajectories are alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from appo.core.trajectory import Prompt
from appo.engines import HFEngine, SamplingParams
from appo.rollouts import AgentLoop, Limits, RolloutRequest
from appo.tools import CallSyntax, ParsedCall, RenderChat, Tool, ToolAnswer, ToolRunner
from benchmarks.generation import make_policy, make_workload


@dataclass(frozen=True)
class TextSyntax(CallSyntax):
    """A turn that holds the text is a call: even a random policy makes many."""

    ending: str

    def stop_strings(self, tools: Sequence[str]) -> tuple[str, ...]:
        return (self.ending,)

    def parse(self, text: str, tools: Sequence[str]) -> tuple[ParsedCall, ...]:
        start = text.find(self.ending)
        end = start + len(self.ending)
        return (ParsedCall(tools[0], text[:end], end),) if start >= 0 else ()

    def format_results(self, results: Sequence[str], turn: str, render: RenderChat) -> str:
        return "".join(results)


@dataclass(frozen=True)
class Sleep(Tool):
    """Answers after a while."""

    seconds: float

    @property
    def name(self) -> str:
        return "sleep"

    def __call__(self, argument: str) -> str:
        time.sleep(self.seconds)
        return " 3 times 4 makes 12."


class TimedRunner(ToolRunner):
    """Knows how long the loop has waited for calls with nothing to sample."""

    idle_s = 0.0

    def finished(self, wait_s: float | None = 0.0) -> list[ToolAnswer]:
        begin = time.perf_counter()
        answers = super().finished(wait_s)
        if wait_s is None:
            self.idle_s += time.perf_counter() - begin
        return answers


@dataclass(frozen=True)
class Result:
    """Of all rounds together; `turn_tokens` is the mean length of a turn."""

    num_trajectories: int
    tool_s: float
    wall_s: float
    idle_share: float
    worst_idle_share: float
    num_calls: int
    turn_tokens: float


def measure(policy: str, num_trajectories: int, tool_s: float, rounds: int, ending: str) -> Result:
    """Runs the loop once for warming up, then `rounds` times with other prompts and seeds."""
    engine, runner = HFEngine(device="cpu"), TimedRunner([Sleep(tool_s)], max_parallel=num_trajectories)
    runner.start()
    prompts = make_workload("loop", num_trajectories, num_turns=1, shortest=1, longest=1).prompts
    wall_s, idle_s, num_calls, num_tokens, num_turns = [], [], 0, 0, 0
    for round_number in range(rounds + 1):
        # Started anew: what an earlier round left in the prefix cache would be a gift.
        engine.start(policy)
        loop = AgentLoop(
            engine,
            AutoTokenizer.from_pretrained(policy),
            runner,
            TextSyntax(ending),
            Limits(max_response_tokens=512, max_tool_calls=6, max_result_tokens=32),
        )
        starts = [
            RolloutRequest(Prompt(str(i), "", ids, ()), round_number * num_trajectories + i)
            for i, ids in enumerate(prompts)
        ]
        runner.idle_s = 0.0
        begin = time.perf_counter()
        trajectories = loop.run(starts, SamplingParams())
        if round_number:
            wall_s.append(time.perf_counter() - begin)
            idle_s.append(runner.idle_s)
            num_calls += sum(len(trajectory.tool_calls) for trajectory in trajectories)
            num_tokens += sum(int(trajectory.response_mask.sum()) for trajectory in trajectories)
            num_turns += sum(len(trajectory.tool_calls) + 1 for trajectory in trajectories)
        engine.stop()
    runner.stop()
    return Result(
        num_trajectories,
        tool_s,
        round(statistics.median(wall_s), 2),
        round(sum(idle_s) / sum(wall_s), 4),
        round(max(idle / wall for idle, wall in zip(idle_s, wall_s, strict=True)), 4),
        num_calls,
        round(num_tokens / num_turns, 1),
    )


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.tool_loop", description="Idle time of the engine in the loop.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of tool_loop.json")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--trajectories", type=int, default=32, help="in flight at once")
    parser.add_argument("--tool-s", type=float, default=0.2, help="seconds that a call takes")
    parser.add_argument(
        "--endings", nargs="+", default=["00", "m"], help="text that ends a turn; a rare one: long turns"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    results = []
    print(f"{'in flight':>9} {'wall s':>7} {'calls':>6} {'tokens a turn':>14} {'idle':>7} {'worst round':>12}")
    with tempfile.TemporaryDirectory() as policy:
        make_policy(Path(policy))
        for ending in options.endings:
            result = measure(policy, options.trajectories, options.tool_s, options.rounds, ending)
            results.append(result)
            print(
                f"{result.num_trajectories:9} {result.wall_s:7.2f} {result.num_calls:6} {result.turn_tokens:14.1f} "
                f"{result.idle_share:7.2%} {result.worst_idle_share:12.2%}"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "threads": options.threads,
        "rounds": options.rounds,
        "machine": platform.machine(),
        "results": [asdict(result) for result in results],
    }
    (options.out / "tool_loop.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

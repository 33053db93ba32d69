"""Measures rewards a second, as a run takes them: through `RewardRunner`, in threads, each within its time limit.

The trajectories have the form that agents are trained for: thoughts, a search, a Python call, results, and a boxed
answer, 2,000 characters in all; every question, thought and answer is another one, so nothing is found in a cache. A
third of the answers is right in another spelling, a third wrong, and a third malformed.

`direct` calls the reward in a plain loop; the difference to `runner` is what threads, order and time limits cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from appo.core.trajectory import Prompt, RewardResult, Segment, ToolCall, Trajectory
from appo.rewards import (
    AnswerReward,
    CompositeReward,
    ExactMatchReward,
    MathReward,
    OverlongPenalty,
    Reward,
    RewardRunner,
)

REWARDS: dict[str, Callable[[], Reward]] = {
    "AnswerReward": AnswerReward,
    "AnswerReward, released rules": lambda: AnswerReward(released_rules=True),
    "ExactMatchReward": ExactMatchReward,
    "AnswerReward + OverlongPenalty": lambda: CompositeReward(
        {"answer": AnswerReward(), "overlong": OverlongPenalty(max_tokens=4096)}
    ),
    "MathReward": MathReward,
}

SHARE = {"MathReward": 0.1}
"""Of the trajectories that a slow reward is measured on."""


@dataclass(frozen=True)
class Result:
    """Median rewards a second of one reward."""

    reward: str
    num_trajectories: int
    num_characters: int
    direct_per_s: float
    runner_per_s: float


def make_trajectories(count: int, num_characters: int, round_number: int) -> list[Trajectory]:
    """Trajectories that differ from one another and from those of other rounds."""
    return [_trajectory(round_number * count + number, num_characters) for number in range(count)]


def _trajectory(number: int, num_characters: int) -> Trajectory:
    value = f"{number}.5"
    answer = (f"\\frac{{{2 * number + 1}}}{{2}}", f"-{value}", value)[number % 3]
    closing = "" if number % 3 == 2 else "</answer>"
    result = f" <result>\nPage {number}: it is said to be about {number}, more or less.\n</result>"
    texts = (
        ("<think>", True),
        (f"</think><search>what is {number}</search>", True),
        (result, False),
        (f"<python>print({number} + 1 / 2)</python>", True),
        (result, False),
        (f"<think>So it is.</think><answer>The answer is \\boxed{{{answer}}}.{closing}", True),
    )
    missing = num_characters - sum(len(text) for text, _ in texts)
    thought = (f"Step {number}: the sum of what is known and what is wanted. " * (1 + missing // 40))[: max(missing, 0)]
    segments = [Segment(text, is_generated) for text, is_generated in texts]
    segments[:2] = [Segment(texts[0][0] + thought + texts[1][0], True)]
    tokens = torch.zeros(num_characters // 4)
    return Trajectory(
        prompt=Prompt(f"q{number}", f"What is {number}?", (1,), (value, f"about {number}")),
        token_ids=tokens.long(),
        response_mask=tokens.bool(),
        behavior_log_probs=tokens,
        policy_versions=tokens.long(),
        segments=tuple(segments),
        tool_calls=tuple(ToolCall(tool, "x", "y", None, 0.0, 1) for tool in ("search", "python")),
        finish_reason="eos",
    )


def measure(name: str, count: int, num_characters: int, rounds: int, num_workers: int) -> Result:
    """Judges new trajectories in every round, both ways; the first round does not count."""
    reward = REWARDS[name]()
    runner = RewardRunner(reward, num_workers)
    runner.start()
    speeds: dict[str, list[float]] = {"direct": [], "runner": []}
    judges: dict[str, Callable[[Sequence[Trajectory]], list[RewardResult]]] = {
        "direct": lambda trajectories: [reward(trajectory) for trajectory in trajectories],
        "runner": runner,
    }
    try:
        for round_number in range(rounds + 1):
            for offset, (way, judge) in enumerate(judges.items()):
                trajectories = make_trajectories(count, num_characters, 2 * round_number + offset)
                begin = time.perf_counter()
                outcomes = judge(trajectories)
                seconds = time.perf_counter() - begin
                assert len({outcome.parts["accuracy"] for outcome in outcomes}) == 2
                if round_number:
                    speeds[way].append(count / seconds)
    finally:
        runner.stop()
    direct, through_runner = (round(statistics.median(speeds[way])) for way in judges)
    return Result(name, count, num_characters, direct, through_runner)


def main() -> None:
    """Prints the table and writes it as JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.rewards", description="Rewards a second.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of rewards.json")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each reward")
    parser.add_argument("--trajectories", type=int, default=1000, help="of a run")
    parser.add_argument("--characters", type=int, default=2000, help="of a trajectory")
    parser.add_argument("--workers", type=int, default=16, help="rollout.rewards.workers")
    options = parser.parse_args()
    results = []
    print(f"{'reward':32} {'direct/s':>9} {'runner/s':>9}")
    for name in REWARDS:
        count = round(options.trajectories * SHARE.get(name, 1.0))
        result = measure(name, count, options.characters, options.rounds, options.workers)
        results.append(result)
        print(f"{name:32} {result.direct_per_s:9,} {result.runner_per_s:9,}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "rounds": options.rounds,
        "workers": options.workers,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "results": [asdict(result) for result in results],
    }
    (options.out / "rewards.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

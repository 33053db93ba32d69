"""Whole runs on several processes, for tests of what comes out of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM

from appo.__main__ import main
from tests.copied_processes import run
from tests.small_run import CONFIG, SMALL, metrics

ROOT = Path(__file__).parents[2]
TRAINED = [
    # Three prompts an update on two processes, and few tokens a micro-batch: one of the two has more of them.
    "--data.prompts_per_iteration=6",
    "--data.prompts_per_minibatch=3",
    "--model.max_tokens_per_microbatch=128",
    "--rollout.reward=tests.small_run.EvenTokens",
    "--rollout.advantage=GlobalBatchAdvantage",
    # Branches of branches.
    "--rollout.branching.rounds=2",
    "--rollout.branching.num_trajectories=8",
    "--rollout.sampling.lag=1",
    "--trainer.max_epochs=3",
    "--trainer.check_val_every_n_epoch=3",
]

ADAPTED = [*TRAINED[:-3], "--model.lora.rank=4", "--model.optimizer.lr=0.01"]

TENSOR_PARALLEL = [
    "--trainer.strategy=ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size=1",
    "--trainer.strategy.tensor_parallel_size=2",
]


@dataclass(frozen=True)
class FinishedRun:
    """How a run ended: as its first process did, or another one that failed, with what all of them said."""

    returncode: int
    stderr: str


def arguments(folder: Path, policy: Path, strategy: str, processes: int, *options: str) -> list[str]:
    """Of ``appo``; with strategy `tensor`, two processes compute every layer together."""
    chosen = TENSOR_PARALLEL if strategy == "tensor" else [f"--trainer.strategy={strategy}"]
    return [
        "fit", "--config", CONFIG, *SMALL, f"--model.policy={policy}", f"--trainer.default_root_dir={folder}", *chosen,
        f"--trainer.devices={processes}", "--rollout.rank_timeout_s=60", *options,
    ]  # fmt: skip


def fit_by_command(folder: Path, policy: Path, strategy: str, processes: int, *options: str) -> FinishedRun:
    """`appo fit` as a user types it: the first process starts the others."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "appo", *arguments(folder, policy, strategy, processes, *options)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return FinishedRun(done.returncode, done.stderr)


def fit(folder: Path, policy: Path, strategy: str, processes: int, *options: str) -> FinishedRun:
    """`appo fit` where another program has started the processes, as `torchrun` does."""
    return started(arguments(folder, policy, strategy, processes, *options), processes)


def started(args: Sequence[str], processes: int) -> FinishedRun:
    """Runs ``appo`` in processes that find each other as those of `torchrun` do."""
    ranks = environments(processes) if processes > 1 else [{}]
    return FinishedRun(*run(main, args, *ranks))


def environments(processes: int) -> list[dict[str, str]]:
    """What processes find in their environments that are to train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        connected = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [{**connected, "LOCAL_RANK": str(rank)} for rank in range(processes)]


def difference(folder: Path, other: Path) -> float:
    """Largest difference of two policies' weights."""
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (folder, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def iterations(folder: Path) -> list[dict[str, float]]:
    rows = [{name: float(value) for name, value in row.items() if value} for row in metrics(folder)]
    return [row for row in rows if "train/loss" in row]

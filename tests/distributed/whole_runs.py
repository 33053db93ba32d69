"""Whole runs on several processes, for tests of what comes out of them."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM

from appo.__main__ import main
from tests.distributed.processes import CONTEXT
from tests.small_run import CONFIG, SMALL, metrics

ROOT = Path(__file__).parents[2]
TRAINED = [
    # Three prompts an update on two processes, and few tokens a micro-batch: one of the two has more of them.
    "--data.prompts_per_iteration=6",
    "--data.prompts_per_minibatch=3",
    "--model.max_tokens_per_microbatch=128",
    "--rollout.reward=tests.small_run.EvenTokens",
    "--rollout.advantage=GlobalBatchAdvantage",
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
    """`appo fit` where another program has started the processes, as `torchrun` does.

    They are copies of one that has read the libraries, which takes several times as long as a small run.
    """
    environments: list[dict[str, str]] = [{**os.environ} for _ in range(processes)]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for rank, environment in enumerate(environments):
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": str(rank)}
    args = arguments(folder, policy, strategy, processes, *options)
    with tempfile.NamedTemporaryFile("r") as said:
        ranks = [CONTEXT.Process(target=_appo, args=(args, said.name, each)) for each in environments]
        for rank in ranks:
            rank.start()
        ranks[0].join(300)
        for rank in ranks:
            # What starts processes ends all of them when one has failed.
            rank.join(0 if ranks[0].exitcode else 60)
            rank.kill()
            rank.join()
        return FinishedRun(next((rank.exitcode for rank in ranks if rank.exitcode), 0), said.read())


def _appo(args: list[str], said: str, environment: dict[str, str]) -> None:
    """The main program, with what a copy of a process leaves out at its end."""
    os.environ.update(environment)
    os.chdir(ROOT)
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = [str(ROOT / "src/appo/__main__.py"), *args]
    try:
        main()
    except Exception:
        # It says whose error it is, which multiprocessing does not.
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        atexit._run_exitfuncs()


def difference(folder: Path, other: Path) -> float:
    """Largest difference of two policies' weights."""
    ours, theirs = (AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (folder, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def iterations(folder: Path) -> list[dict[str, float]]:
    rows = [{name: float(value) for name, value in row.items() if value} for row in metrics(folder)]
    return [row for row in rows if "train/loss" in row]

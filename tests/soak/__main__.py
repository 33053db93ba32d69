"""A long run of a tiny policy with a fault in every iteration: ``python -m tests.soak --iterations 200 --endings 8``.

First one process trains under faults that a run survives; what it holds must not grow. Then processes are ended one
after the other, each in another way, and the run goes on from its last checkpoint. Called again, it goes on where it
was stopped. The results are `tests/soak/results.json`, which `docs/faults.md` quotes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections import Counter
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import torch

from appo.__main__ import main as appo
from appo.commands.run_folder import reserved
from appo.sft import TinyPolicy, WorldConversations
from tests.copied_processes import run
from tests.leftovers import children, shared_memory
from tests.slurm_job import slurm_job
from tests.small_run import CONFIG, FEW_TOKENS
from tests.soak.faults import ENDING

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
STATUS = {"SIGTERM": 143, "SIGTERM twice": 143, "SIGINT": 130, "SIGINT twice": 130, "SIGUSR1": 143, "SIGKILL": -9}
"""How a process ends; any other fault is an error, 1."""

_WARM = 20
"""First iterations, in which caches fill, that do not count as growth."""


def main() -> None:
    """Runs the soak, and says what it has found."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--iterations", type=int, default=200, help="in one process")
    parser.add_argument("--endings", type=int, default=len(ENDING), help="processes that are ended afterwards")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/soak")
    options = parser.parse_args()
    policy = options.out / "start"
    if not policy.exists():
        TinyPolicy(WorldConversations(), hidden_size=64, num_layers=1, num_heads=2, mlp_size=64).build(policy)
    _survive(options.out, policy, options.iterations)
    endings = _end_and_go_on(options.out, policy, options.endings)
    results = _results(options.out, options.iterations, endings)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    sys.stdout.write(RESULTS.read_text())


def _survive(out: Path, policy: Path, iterations: int) -> None:
    if _done(out) >= iterations:
        return
    with (out / "log.txt").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "appo", *_arguments(out, policy, iterations)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}, stdout=log, stderr=log,
            check=True,
        )  # fmt: skip


def _end_and_go_on(out: Path, policy: Path, number: int) -> list[dict[str, Any]]:
    """Ends processes and looks at what they leave; the last of them comes to the end of the run."""
    path = out / "endings.json"
    endings: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    # A shell that starts it in the background has this signal ignored by all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Theirs is not what a run leaves behind.
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    for count in range(len(endings), number):
        at, ending = _done(out) + 1, ENDING[count % len(ENDING)]
        arguments = _arguments(out, policy, at + 4)
        extra = [f"--trainer.callbacks.ending={ending}", f"--trainer.callbacks.at={at}"]
        before, memory = children(), shared_memory()
        status, output = run(appo, [*arguments, *extra], slurm_job(out / "slurm") if ending == "SIGUSR1" else {})
        checkpoint = torch.load(out / "run/checkpoints/last.ckpt", weights_only=True)
        with reserved(out / "run"):
            pass
        endings.append(
            {
                "fault": ending,
                "iteration": at,
                "status": status,
                "expected_status": STATUS.get(ending, 1),
                "last_iteration": checkpoint["epoch"],
                "says_how_to_go_on": "--ckpt_path last" in output or ending == "SIGKILL",
                "left_processes": len(children() - before),
                "left_shared_memory": len(shared_memory() - memory),
            }
        )
        path.write_text(json.dumps(endings))
    status, output = run(appo, _arguments(out, policy, _done(out) + 1), {})
    if status:
        raise SystemExit(output[-3000:])
    return endings


def _results(out: Path, iterations: int, endings: list[dict[str, Any]]) -> dict[str, Any]:
    levels = [json.loads(line) for line in (out / "levels.jsonl").read_text().splitlines()]
    longest, _ = Counter(level["pid"] for level in levels if level["iteration"] < iterations).most_common(1)[0]
    steady = [level for level in levels if level["pid"] == longest and level["iteration"] < iterations][_WARM:]
    fifth = max(1, len(steady) // 5)
    begin, end = steady[:fifth], steady[-fifth:]

    def median(part: list[dict[str, Any]], name: str) -> float:
        return statistics.median(level[name] for level in part)

    names = ("memory_kib", "descriptors", "threads", "processes", "shared_memory")
    return {
        "iterations_in_one_process": len(steady) + _WARM,
        "levels": {name: {"begin": median(begin, name), "end": median(end, name)} for name in names},
        "memory_growth": median(end, "memory_kib") / median(begin, "memory_kib") - 1.0,
        "faults_survived": dict(sorted(Counter(level["fault"] for level in levels).items())),
        "iterations_done": len({level["iteration"] for level in levels}),
        "endings": endings,
    }


def summary(results: dict[str, Any]) -> str:
    """The results in the sentences of the page."""
    levels, endings = results["levels"], results["endings"]

    def change(name: str) -> str:
        begin, end = (f"{levels[name][when]:g}" for when in ("begin", "end"))
        return f"{begin} to {end}"

    as_expected = sum(ending["status"] == ending["expected_status"] for ending in endings)
    left = sum(ending["left_processes"] + ending["left_shared_memory"] for ending in endings)
    return (
        f"In {results['iterations_in_one_process']} iterations of one process memory grew by "
        f"{100 * results['memory_growth']:.2f} %; descriptors went from {change('descriptors')}, threads from "
        f"{change('threads')}, processes from {change('processes')}. {len(endings)} processes were then ended in "
        f"{len({ending['fault'] for ending in endings})} ways, {as_expected} with the status that the table says; "
        f"{left} processes and pieces of shared memory were left, and the run came to its end."
    )


def _done(out: Path) -> int:
    last = out / "run/checkpoints/last.ckpt"
    return torch.load(last, weights_only=True)["epoch"] + 1 if last.exists() else 0


def _arguments(out: Path, policy: Path, iterations: int) -> list[str]:
    return [
        "fit", "--config", CONFIG, *FEW_TOKENS, f"--model.policy={policy}", f"--trainer.default_root_dir={out / 'run'}",
        "--data.prompts_per_iteration=2", "--rollout.branching.num_trajectories=4", "--rollout.branching.num_roots=2",
        "--rollout.limits.max_response_tokens=12", "--trainer.limit_val_batches=0", "--ckpt_path=last",
        f"--trainer.max_epochs={iterations}", "--rollout.reward=tests.soak.faults.FaultyReward",
        "--rollout.rewards.on_failure=zero", "--rollout.rewards.timeout_s=0.5",
        "--model.loss=tests.soak.faults.FaultyLoss", "--trainer.callbacks=tests.soak.faults.Faults",
        f"--trainer.callbacks.levels={out / 'levels.jsonl'}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()

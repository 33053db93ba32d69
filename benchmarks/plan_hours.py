"""Compares the seconds that `appo plan --hours` gives with those of the runs that were planned, on a CPU.

A policy of some 6 million random weights is trained for a few iterations (*probe*): 8 prompts with 4 roots and 4
branches of at most 96 tokens. Then runs of other shapes are planned by it, and run: twice the prompts, twice the
length, and twice the roots and branches. Trajectories are as long as the limit: such a policy ends none by itself.
Every shape has as many rounds as asked, in turns; figures are medians over iterations of all rounds, the first one
of each left out, and of plans by the probe of each round.

    python -m benchmarks.plan_hours --rounds 3 --out runs/plan_hours
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
from pathlib import Path
from statistics import median

from appo.commands import cli
from appo.commands.plan.probe import Probe
from appo.sft import TinyPolicy, WorldConversations

_CONFIG = Path(__file__).parents[1] / "configs/appo.yaml"
_ITERATIONS = 4
_BASE = {"prompts": 8, "roots": 4, "branches": 4, "tokens": 96}
_SHAPES = {
    "probe": _BASE,
    "prompts x 2": _BASE | {"prompts": 16},
    "length x 2": _BASE | {"tokens": 192},
    "roots and branches x 2": _BASE | {"roots": 8, "branches": 8},
}


def main() -> None:
    """Runs the benchmark and prints its table; ``results.json`` has the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/plan_hours"))
    args = parser.parse_args()
    policy = args.out / "policy"
    TinyPolicy(WorldConversations(), hidden_size=256, num_layers=6, num_heads=4, mlp_size=1024).build(policy)
    measured: dict[str, list[float]] = {name: [] for name in _SHAPES}
    planned: dict[str, list[float]] = {name: [] for name in _SHAPES}
    for number in range(args.rounds):
        folders = {name: args.out / f"{name.replace(' ', '_')}_{number}" for name in _SHAPES}
        for name, folder in folders.items():
            cli.run(["fit", *_options(name, policy, folder), f"--trainer.max_epochs={_ITERATIONS}"])
            measured[name] += _seconds(folder)
            planned[name].append(_planned(name, policy, folders["probe"], args.out / "plan.txt"))
    results = {
        name: {"measured_s": median(measured[name]), "planned_s": median(planned[name])}
        for name in _SHAPES
        if measured[name]
    }
    for each in results.values():
        each["error"] = each["planned_s"] / each["measured_s"] - 1.0
    (args.out / "results.json").write_text(json.dumps({"rounds": args.rounds, "shapes": results}, indent=2) + "\n")
    print("| shape | planned, s | measured, s | error |\n|---|---:|---:|---:|")
    for name, each in results.items():
        print(f"| {name} | {each['planned_s']:.2f} | {each['measured_s']:.2f} | {each['error']:+.0%} |")


def _options(name: str, policy: Path, folder: Path) -> list[str]:
    shape = _SHAPES[name]
    return [
        "--config", str(_CONFIG), f"--model.policy={policy}", f"--trainer.default_root_dir={folder}",
        "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.check_val_every_n_epoch=1000",
        f"--data.prompts_per_iteration={shape['prompts']}", f"--data.prompts_per_minibatch={shape['prompts'] // 2}",
        f"--rollout.branching.num_roots={shape['roots']}", "--rollout.branching.parents=any",
        f"--rollout.branching.num_trajectories={shape['roots'] + shape['branches']}",
        f"--rollout.limits.max_response_tokens={shape['tokens']}", "--rollout.branching.train_on=both",
    ]  # fmt: skip


def _seconds(folder: Path) -> list[float]:
    with max(folder.glob("csv/version_*/metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["rollout/iteration_s"]]
    return [float(row["rollout/iteration_s"]) for row in rows[1:]]


def _planned(name: str, policy: Path, probe: Path, told: Path) -> float:
    """Seconds of an iteration, as the command says."""
    tokens, prompt = _SHAPES[name]["tokens"], Probe.of(probe).lengths.prompt
    lengths = [f"--lengths.prompt={prompt}", f"--lengths.sampled={tokens}", "--lengths.tools=0"]
    out = io.StringIO()
    options = [*_options(name, policy, probe), f"--probe={probe}", *lengths, f"--lengths.longest={tokens}"]
    with contextlib.redirect_stdout(out):
        cli.run(["plan", *options, "--hours=true", "--gpu=cpu"])
    told.write_text(out.getvalue())
    lines = out.getvalue().partition("seconds of an iteration")[2].splitlines()
    return next(float(line.removeprefix("all")) for line in lines if line.startswith("all"))


if __name__ == "__main__":
    main()

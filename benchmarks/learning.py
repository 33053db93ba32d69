"""What APPO, GRPO and random branching learn from the same number of sampled tokens, over seeds.

``python -m benchmarks.learning --seeds 0 1 2 --tokens 120000 --out runs/benchmarks/learning``

Every seed gets an SFT of its own; every method trains from it until the budget of sampled tokens is spent, and is
evaluated on the test questions. Finished steps are kept, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from time import perf_counter

METHODS = {
    "APPO": (),
    "random branching": ("--config", "configs/random_branching.yaml"),
    "GRPO": ("--config", "configs/grpo.yaml"),
}
"""Overlays on `configs/appo.yaml`."""

BASE = ("--config", "configs/appo.yaml", "--trainer.enable_progress_bar", "false")


def appo(done: Path, *args: str) -> None:
    """Runs one command unless the file it ends with is there; notes its seconds beside that file."""
    if done.exists():
        return
    start = perf_counter()
    subprocess.run([sys.executable, "-m", "appo", *args], check=True, stdout=subprocess.DEVNULL)
    done.with_name("seconds.json").write_text(json.dumps({"seconds": perf_counter() - start}))


def accuracy(folder: Path) -> float:
    """Sampled accuracy on the test questions."""
    return float(json.loads((folder / "test.json").read_text())["test/accuracy"])


def evaluate(folder: Path, policy: Path) -> float:
    """Tests a policy, unless that is done."""
    appo(
        folder / "test.json",
        "test", *BASE, "--model.policy", str(policy), "--trainer.default_root_dir", str(folder),
    )  # fmt: skip
    return accuracy(folder)


def run(out: Path, seed: int, tokens: int) -> dict[str, float]:
    """Trains every method on one seed; returns accuracies by name."""
    start = out / f"seed_{seed}/sft"
    appo(
        start / "policy/config.json",
        "sft", "--config", "configs/sft.yaml", "--seed_everything", str(seed),
        "--trainer.default_root_dir", str(start), "--model.policy", str(start / "untrained"),
        "--model.save_to", str(start / "policy"),
    )  # fmt: skip
    results = {"SFT": evaluate(start / "test", start / "policy")}
    for name, overlay in METHODS.items():
        folder = out / f"seed_{seed}/{name.replace(' ', '_')}"
        appo(
            folder / "policy/config.json",
            "fit", *BASE, *overlay, "--seed_everything", str(seed), "--rollout.seed", str(seed),
            "--data.seed", str(seed), "--model.policy", str(start / "policy"),
            "--rollout.stop_after_tokens", str(tokens), "--trainer.max_epochs", "100000",
            "--trainer.default_root_dir", str(folder),
        )  # fmt: skip
        results[name] = evaluate(folder / "test", folder / "policy")
    return results


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tokens", type=int, default=120_000, help="sampled tokens of one training")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/learning"))
    options = parser.parse_args()
    results = {seed: run(options.out, seed, options.tokens) for seed in options.seeds}
    (options.out / "results.json").write_text(json.dumps({"tokens": options.tokens, "accuracy": results}, indent=2))
    print("| | " + " | ".join(f"seed {seed}" for seed in results) + " | mean |")
    print("|---|" + "---:|" * (len(results) + 1))
    for name in ("SFT", *METHODS):
        values = [result[name] for result in results.values()]
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in [*values, mean(values)]) + " |")


if __name__ == "__main__":
    main()

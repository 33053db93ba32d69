"""Runs of an ablation whose processes do not train: they write what a script says."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from appo.commands.ablate.execution import Result
from appo.commands.ablate.processes import Children
from appo.commands.ablate.runs import Resolved, Run
from appo.commands.ablate.spec import AblationSpec

CONFIG: Mapping[str, Any] = {
    "trainer.max_steps": -1,
    "trainer.max_time": None,
    "trainer.min_epochs": None,
    "trainer.min_steps": None,
    "trainer.fast_dev_run": False,
    "trainer.barebones": False,
    "trainer.logger": None,
    "model.policy": "start",
    "data.prompts_per_iteration": 32,
    "data.prompts_per_minibatch": 16,
}


def options_of(args: Sequence[str]) -> dict[str, Any]:
    """The options of a command line; the last one wins."""
    pairs = (arg.removeprefix("--").split("=", 1) for arg in args)
    return {key: int(value) if value.isdigit() else value for key, value in pairs}


def resolve(args: Sequence[str]) -> Resolved:
    """What a command line makes of `CONFIG`."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in {**CONFIG, **options_of(args)}.items():
        section, _, name = f".{key}".rpartition(".")
        sections.setdefault(section.removeprefix(".") or "top", {})[name] = value
    return Resolved(sections, ("train", "test"))


def two_scorers(out: Path, **options: Any) -> AblationSpec:
    """Two scorers over two seeds, unless `options` say otherwise."""
    return AblationSpec(
        **{"vary": {"rollout.scorer": ("A", "B")}, "seeds": (0, 1), "tokens": 2000, "out": out, **options}
    )


def iterations(tokens: int, per_iteration: float, steps: int = 2) -> list[dict[str, float]]:
    """The history of a run up to its budget."""
    rows: list[dict[str, float]] = []
    while not rows or rows[-1]["rollout/generated_tokens_total"] < tokens:
        number = len(rows) + 1
        rows.append(
            {
                "epoch": number - 1,
                "step": steps * number - 1,
                "rollout/generated_tokens": per_iteration,
                "rollout/generated_tokens_total": per_iteration * number,
                "rollout/calls_made": 3.0,
                "rollout/iteration_s": 2.0,
                "rollout/reward_initial_mean": 0.1 * number,
                "train/tokens": 2 * per_iteration,
            }
        )
    return rows


def result(run: Run, per_iteration: float, accuracy: float = 0.5) -> Result:
    """What a training of two steps an iteration leaves."""
    return Result(run, iterations(run.tokens, per_iteration), {"test/accuracy": accuracy})


class ScriptedChildren(Children):
    """Trains and tests nothing.

    Args:
        tokens_per_prompt: that a scorer generates; one without fails.
    """

    def __init__(self, tokens_per_prompt: Mapping[str, float]) -> None:
        super().__init__()
        self.tokens_per_prompt = tokens_per_prompt
        self.commands: list[tuple[str, str]] = []
        """Name and folder of every command, the folder below that of the ablation."""

    def run(self, args: Sequence[str], log: Path) -> int:
        options = {**CONFIG, **options_of(args[1:])}
        folder = Path(options["trainer.default_root_dir"])
        self.commands.append((args[0], "/".join(folder.parts[-4:] if args[0] == "test" else folder.parts[-3:])))
        if args[0] == "test":
            folder.mkdir()
            (folder / "test.json").write_text(json.dumps({"test/accuracy": 0.25 if "before" in folder.parts else 0.5}))
            return 0
        scorer = options["rollout.scorer"]
        if scorer not in self.tokens_per_prompt:
            return 3
        per_iteration = self.tokens_per_prompt[scorer] * options["data.prompts_per_iteration"]
        rows = iterations(options["rollout.stop_after_tokens"], per_iteration)
        path = folder / "csv/version_0/metrics.csv"
        path.parent.mkdir(parents=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return 0

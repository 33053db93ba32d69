"""Rewards that an untrained policy can earn, and a small run of APPO: a test trains for real within seconds."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from appo.commands import cli
from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards import Reward

CONFIG = str(Path(__file__).parents[1] / "configs/appo.yaml")
FEW_TOKENS = [
    "--data.source.problems.num_train=64",
    "--data.source.problems.num_validation=6",
    "--data.source.problems.num_test=6",
    "--data.prompts_per_iteration=4",
    "--data.prompts_per_minibatch=2",
    "--rollout.limits.max_response_tokens=24",
    "--rollout.evaluation.samples=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]
SMALL = [*FEW_TOKENS, "--rollout.branching.num_trajectories=6", "--rollout.branching.num_roots=4"]


@dataclass(frozen=True)
class EvenTokens(Reward):
    """The share of sampled tokens whose id is even."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        share = float((trajectory.token_ids[trajectory.response_mask] % 2 == 0).float().mean())
        return RewardResult(share, {"accuracy": share})


@dataclass(frozen=True)
class EveryOtherFlat(EvenTokens):
    """The share of even ids, for every other question; all trajectories of the rest are worth the same."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        is_flat = sum(trajectory.prompt.id.encode()) % 2 == 0
        return RewardResult(0.0, {"accuracy": 0.0}) if is_flat else super().__call__(trajectory)


@dataclass(frozen=True)
class Constant(Reward):
    """The same for everyone."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return RewardResult(0.5, {"accuracy": 0.5})


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics."""
    with next((folder / "csv").glob("version_*/metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def newest(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics of the run that was last in a folder."""
    last = max((folder / "csv").glob("version_*"), key=lambda path: int(path.name.partition("_")[2]))
    with (last / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def run(command: str, folder: Path, policy: Path, *options: str) -> Path:
    """Runs the command line on a small version of `configs/appo.yaml`; returns the run's folder."""
    args = [command, "--config", CONFIG, *SMALL, f"--model.policy={policy}", f"--trainer.default_root_dir={folder}"]
    cli.run([*args, *options])
    return folder

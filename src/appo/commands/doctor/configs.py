"""Small runs of ``appo fit`` on the doctor's policy, and parts of them that watch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from appo.commands.doctor.policies import policy_folder
from appo.commands.doctor.result import Machine
from appo.core.trajectory import RewardResult, Trajectory
from appo.distributed import comm
from appo.rewards import Reward
from appo.training.callbacks.common import run_folder


@dataclass(frozen=True)
class EvenTokens(Reward):
    """The share of sampled tokens whose id is even, which an untrained policy can raise.

    The last of several processes alone has a metric `on_last_rank`, as happens where only some questions need a tool.
    """

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        share = float((trajectory.token_ids[trajectory.response_mask] % 2 == 0).float().mean())
        is_last = comm.num_ranks() > 1 and comm.rank() == comm.num_ranks() - 1
        return RewardResult(share, {"accuracy": share} | ({"on_last_rank": 1.0} if is_last else {}))


class Signpost(L.Callback):
    """Writes the process ids of a run into its folder when the training has begun, as ``rank_<number>.pid``."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        path = run_folder(trainer) / f"rank_{trainer.global_rank}.pid"
        path.write_text(str(os.getpid()))


class PeakMemory(L.Callback):
    """Keeps the most memory that torch has held on a GPU, of sampling and of updates."""

    peaks: dict[str, int]

    def __init__(self) -> None:
        self.peaks = PEAKS

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take("other")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._take("sampling")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._take("update")

    def _take(self, phase: str) -> None:
        if torch.cuda.is_available():
            self.peaks[phase] = max(self.peaks.get(phase, 0), torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()


PEAKS: dict[str, int] = {}
"""Of the run of this process, in bytes."""


def write_config(machine: Machine, folder: Path, **trainer: Any) -> Path:
    """Writes what a small run is configured with.

    Args:
        machine: it runs on.
        folder: of the run.
        **trainer: of section ``trainer``.
    """
    length, prompts = (128, 8) if machine.is_gpu else (16, 4)
    config = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder),
            "accelerator": "gpu" if machine.is_gpu else "cpu",
            "devices": [machine.device.index] if machine.is_gpu else 1,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": 1000,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": f"{__name__}.{part}"} for part in ("PeakMemory", "Signpost")],
            **trainer,
        },
        "model": {
            "policy": str(policy_folder(machine)),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "weight_decay": 0.0}},
            "max_tokens_per_microbatch": 8192 if machine.is_gpu else 512,
        },
        "data": {
            "source": {
                "class_path": "WorldQuestions",
                "init_args": {"problems": {"num_train": 64, "num_validation": 4, "num_test": 4}},
            },
            "prompts_per_iteration": prompts,
            "prompts_per_minibatch": prompts,
            "max_prompt_tokens": 64,
        },
        "rollout": {
            "reward": {"class_path": f"{__name__}.EvenTokens"},
            "branching": {"num_trajectories": 6, "num_roots": 4},
            "limits": {"max_response_tokens": length},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "doctor.yaml"
    path.write_text(yaml.safe_dump(config))
    return path

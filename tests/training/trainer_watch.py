"""Looks at a training from within, and a reward that no two trajectories share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import torch

from appo.core.trajectory import RewardResult, Trajectory
from appo.rewards import Reward


@dataclass(frozen=True)
class MeanToken(Reward):
    """The mean of the ids of the sampled tokens, in thousands: there is a gradient in every step."""

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        mean = float(trajectory.token_ids[trajectory.response_mask].float().mean()) / 1000
        return RewardResult(mean, {"accuracy": mean})


class Watch(L.Callback):
    """Writes down what was switched on while a step was taken, and while a validation ran; of the last run alone."""

    seen: ClassVar[dict[str, Any]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.seen.clear()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.update(
            anomalies=torch.is_anomaly_enabled(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            warns=torch.is_deterministic_algorithms_warn_only_enabled(),
            benchmark=torch.backends.cudnn.benchmark,
            steps=self.seen.get("steps", 0) + 1,
        )

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.seen["inference"] = torch.is_inference_mode_enabled()
        if not trainer.sanity_checking:
            self.seen["validated"] = self.seen.get("validated", 0) + 1
        else:
            self.seen["sanity"] = self.seen.get("sanity", 0) + 1

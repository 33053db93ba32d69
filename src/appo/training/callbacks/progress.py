"""A progress bar over iterations."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

_SHOWN = {
    "reward": "rollout/reward_mean",
    "accuracy": "rollout/accuracy",
    "branches": "rollout/branches_made",
    "tokens/s": "rollout/tokens_per_s",
}


class IterationProgress(ProgressBar):
    """One bar for the whole training, a step an iteration, with what an eye wants to follow."""

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._bar: tqdm[Any] | None = None

    def disable(self) -> None:
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        self._bar = tqdm(
            desc="iterations",
            total=total,
            initial=trainer.current_epoch,
            disable=not self._is_enabled,
            dynamic_ncols=True,
        )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self._bar is not None
        metrics = trainer.callback_metrics
        shown = {name: f"{float(metrics[key]):.3g}" for name, key in _SHOWN.items() if key in metrics}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

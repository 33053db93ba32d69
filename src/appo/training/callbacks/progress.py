"""Progress bars: over iterations, and over the batches of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from appo.monitoring.evaluation_metrics import Evaluated

_SHOWN = {
    "reward": "rollout/reward_mean",
    "accuracy": "rollout/accuracy",
    "branches": "rollout/branches_made",
    "tokens/s": "rollout/tokens_per_s",
}


class EvaluationBar:
    """A bar over what is evaluated, with the mean reward so far, of this process where there are several.

    Args:
        name: of the evaluation.
        total: steps.
        is_shown: whether it is drawn.
    """

    def __init__(self, name: str, total: int, is_shown: bool) -> None:
        self._rewards: list[float] = []
        self._bar = tqdm(desc=name, total=total, disable=not is_shown, dynamic_ncols=True)

    def update(self, rewards: Sequence[float], steps: int = 1) -> None:
        """Takes in the rewards of some steps, if there are any."""
        self._rewards += rewards
        if self._rewards:
            self._bar.set_postfix({"reward": f"{fmean(self._rewards):.3g}"}, refresh=False)
        self._bar.update(steps)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


class IterationProgress(ProgressBar):
    """One bar for the whole training, a step an iteration, and one for an evaluation, with what an eye wants to follow.

    What is validated within a training has none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._bar: tqdm[Any] | None = None
        self._evaluation: EvaluationBar | None = None

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
        self._close()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._begin("validate", sum(trainer.num_val_batches))

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("predict", sum(trainer.num_predict_batches))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Evaluated,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._evaluation is not None:
            self._evaluation.update([result.reward for _, result in batch if result is not None])

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._close()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def _begin(self, name: str, num_batches: float) -> None:
        self._evaluation = EvaluationBar(name, int(num_batches), self._is_enabled)

    def _close(self) -> None:
        for bar in (self._bar, self._evaluation):
            if bar is not None:
                bar.close()
        self._bar = self._evaluation = None

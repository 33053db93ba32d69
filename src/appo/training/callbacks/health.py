"""The callback that says while a policy trains what is not healthy about its metrics."""

from __future__ import annotations

import logging

import lightning as L

from appo.monitoring.health import HealthMonitor
from appo.training.callbacks.evaluation import rollout_callback

log = logging.getLogger(__name__)


class HealthCheck(L.Callback):
    """Logs a line when a rule of `appo.monitoring.health_rules` begins to speak; it looks when all else was logged."""

    def __init__(self) -> None:
        self._monitor = HealthMonitor()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._monitor = HealthMonitor()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        # What the trainer keeps of rollouts may be of an earlier iteration, where this one has none of its kind.
        of_steps = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        row = {**of_steps, **rollout_callback(trainer).metrics}
        for finding in self._monitor.update(trainer.current_epoch, row):
            if finding.rule.is_told:
                log.warning("%s", finding.message)

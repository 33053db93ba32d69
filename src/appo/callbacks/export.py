"""The trained policy as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from appo.datamodule import RolloutDataModule
from appo.module import APPOModule
from appo.policy import save_policy


class ExportPolicy(L.Callback):
    """Writes the policy and its tokenizer to ``policy/`` in the run's folder when the training ends."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by the trainer, not declared
        if isinstance(pl_module, APPOModule) and isinstance(data, RolloutDataModule) and trainer.is_global_zero:
            assert pl_module.policy is not None
            save_policy(pl_module.policy, data.tokenizer, Path(trainer.default_root_dir) / "policy")

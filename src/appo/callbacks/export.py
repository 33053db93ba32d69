"""The trained policy as a Hugging Face folder."""

from __future__ import annotations

import lightning as L

from appo.callbacks.common import parts_of, run_folder
from appo.policy import save_policy


class ExportPolicy(L.Callback):
    """Writes the policy and its tokenizer to ``policy/`` in the run's folder when the training ends."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = parts_of(trainer, pl_module)
        if trainer.is_global_zero:
            assert module.policy is not None
            save_policy(module.policy, data.tokenizer, run_folder(trainer) / "policy")

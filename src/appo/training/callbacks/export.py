"""The trained policy as a Hugging Face folder."""

from __future__ import annotations

import lightning as L

from appo.policy.saving import end_turns, save_policy
from appo.training.callbacks.common import leaves_files, parts_of, run_folder
from appo.training.callbacks.termination import was_ended


class ExportPolicy(L.Callback):
    """Writes the policy and its tokenizer to ``policy/`` in the run's folder when the training ends.

    One that was told to end before writes none, it is to be resumed; nor does ``fast_dev_run``. An adapter is merged
    into it, and stands alone in ``policy/adapter/``, in peft's format.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if was_ended(trainer) or not leaves_files(trainer):
            return
        module, data = parts_of(trainer, pl_module)
        assert module.policy is not None
        end_turns(module.policy, data.tokenizer)
        folder = run_folder(trainer) / "policy"
        if module.adapter is None:
            save_policy(module.policy, data.tokenizer, folder)
            return
        merged = module.adapter.merged(trainer.is_global_zero)
        if merged is not None:
            save_policy(merged, data.tokenizer, folder)
        module.adapter.save(folder / "adapter", trainer.is_global_zero)

"""Options of the trainer that have another place here."""

from __future__ import annotations

import lightning as L
import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from appo.training.trainer_checks import check_trainer, check_trainer_options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val must be left out, got 1.0; model.max_grad_norm is its"),
        ({"gradient_clip_algorithm": "value"}, "gradient_clip_algorithm must be left out, got value; model.max_grad"),
        ({"accumulate_grad_batches": 2}, "got 2; model.max_tokens_per_microbatch is its place here"),
    ],
)
def test_what_lightning_does_for_its_own_optimization_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_trainer_options(options, [])


@pytest.mark.parametrize("callback", [EMAWeightAveraging, lambda: StochasticWeightAveraging(swa_lrs=0.1)])
def test_averages_of_weights_are_refused(callback):
    with pytest.raises(ValueError, match=r"trainer.callbacks must not average weights"):
        check_trainer_options({}, [callback()])


def test_what_changes_nothing_passes():
    check_trainer_options({"accumulate_grad_batches": 1, "gradient_clip_val": None}, [ModelCheckpoint()])


def test_a_trainer_that_is_made_already_is_checked_alike():
    quiet = {"accelerator": "cpu", "logger": False, "enable_model_summary": False}
    check_trainer(L.Trainer(**quiet))
    check_trainer(L.Trainer(fast_dev_run=True, **quiet))
    with pytest.raises(ValueError, match=r"trainer.limit_train_batches must be left out, got 1; data.prompts_per_iter"):
        check_trainer(L.Trainer(limit_train_batches=1, **quiet))
    with pytest.raises(ValueError, match=r"trainer.overfit_batches must be left out, got 0.5"):
        check_trainer(L.Trainer(overfit_batches=0.5, **quiet))

"""Options of the trainer that have another place here."""

from __future__ import annotations

import pytest
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from appo.training.trainer_checks import check_trainer_options


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

"""What a run is told before it starts."""

from __future__ import annotations

import pytest
import torch

from appo.distributed.fsdp import Sharding
from appo.training.checks import warn_of_float32
from appo.training.module import APPOModule


@pytest.mark.parametrize(
    ("device", "precision", "options", "warns"),
    [
        ("cuda", "32-true", {}, True),
        ("cuda", "bf16-mixed", {}, False),
        ("cuda", "32-true", {"dtype": "bfloat16"}, False),
        ("cuda", "32-true", {"sharding": Sharding(param_dtype="bfloat16")}, False),
        ("cpu", "32-true", {}, False),
    ],
)
def test_float32_on_a_gpu_is_said_to_be_slow(device, precision, options, warns, caplog):
    warn_of_float32(torch.device(device), precision, APPOModule("policy", **options))
    assert ("trainer.precision=32-true computes in float32 on a GPU" in caplog.text) == warns

"""What a run is told before it starts."""

from __future__ import annotations

import pytest
import torch

from appo.distributed.fsdp import Sharding
from appo.engines import HFEngine, VLLMEngine
from appo.training.checks import check_engine_device, warn_of_float32
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


def test_an_engine_of_the_process_is_not_put_on_another_gpu_than_the_policy():
    second = torch.device("cuda", 1)
    message = (
        r"trainer.devices must be the first GPU .* with VLLMEngine in one process, got \[1\]; CUDA_VISIBLE_DEVICES=1"
    )
    with pytest.raises(ValueError, match=message):
        check_engine_device(VLLMEngine(), second, num_ranks=1)
    # With several processes vLLM is told which GPU is whose; the other engine follows the policy.
    check_engine_device(VLLMEngine(), second, num_ranks=2)
    check_engine_device(HFEngine(), second, num_ranks=1)
    for device in (torch.device("cuda", 0), torch.device("cuda"), torch.device("cpu")):
        check_engine_device(VLLMEngine(), device, num_ranks=1)

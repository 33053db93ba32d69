"""The formula of the operations of a training step, against what PyTorch counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    HunYuanMoEV1Config,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from appo.core.batch import TrajectoryBatch
from appo.core.collate import make_batch
from appo.policy.flops import PolicyFlops, TrainedWork, peak_by_name, peak_flops, training_metrics
from appo.policy.lora import Adapter, LoRA

SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def _policy(config: PreTrainedConfig) -> PreTrainedModel:
    # In plain operations, which the counter knows: it sees neither fused attention nor experts on a CPU.
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")


def _batch(lengths: list[int], num_scored: int | None = None) -> TrajectoryBatch:
    """Rows of which all tokens are sampled, or the last `num_scored`."""
    positions = torch.arange(max(lengths)).expand(len(lengths), -1)
    ends = torch.tensor(lengths)[:, None]
    mask = (positions < ends) & (positions >= (0 if num_scored is None else ends - num_scored))
    zeros = torch.zeros(mask.shape)
    return make_batch(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64), lengths=torch.tensor(lengths), response_mask=mask,
        behavior_log_probs=zeros, old_log_probs=zeros, advantages=zeros, ref_log_probs=None,
    )  # fmt: skip


def _counted(policy: PreTrainedModel, lengths: list[int]) -> int:
    """A forward and a backward pass, row by row."""
    with FlopCounterMode(display=False) as counter:
        for length in lengths:
            policy(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SHAPE, tie_word_embeddings=True),
        Qwen3Config(**SHAPE, head_dim=32),
        Qwen3MoeConfig(**SHAPE, moe_intermediate_size=32, num_experts=8, num_experts_per_tok=2),
        MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=1),
    ],
    ids=lambda config: config.model_type,
)
def test_forward_and_backward_take_what_pytorch_counts(config):
    policy, lengths = _policy(config), [128, 40]
    work = PolicyFlops.of(policy).of_batch(_batch(lengths))
    assert work.num_tokens == 168
    assert work.flops == pytest.approx(_counted(policy, lengths), rel=0.02)


def test_frozen_weights_take_no_gradient_of_their_own():
    policy, lengths = _policy(Qwen2Config(**SHAPE)), [128]
    whole = PolicyFlops.of(policy).of_batch(_batch(lengths)).flops
    Adapter(policy, LoRA(rank=8))
    adapted = PolicyFlops.of(policy).of_batch(_batch(lengths)).flops
    # The gradient of the first layer's input is not needed then: 2 %.
    assert adapted == pytest.approx(_counted(policy, lengths), rel=0.03)
    assert adapted < 0.9 * whole


def test_the_head_is_for_sampled_tokens_and_rows_without_any_are_not_trained():
    flops = PolicyFlops(token=10.0, scored_token=100.0, pair=1.0)
    # Rows of 4 and 3 tokens, of which 2 each are sampled: 10 * 7 + 100 * 4 + 16 + 9.
    assert flops.of_batch(_batch([4, 3], num_scored=2)) == TrainedWork(7, 495.0)
    assert flops.of_batch(_batch([4, 3], num_scored=0)) == TrainedWork(0, 0.0)


def test_what_rows_begin_with_alike_counts_once():
    flops = PolicyFlops(token=10.0, scored_token=100.0, pair=1.0)
    token_ids = torch.arange(60).repeat(3, 1)
    token_ids[1, 20:] += 60
    token_ids[2, 50:] += 120
    batch = replace(_batch([60, 60, 60], num_scored=15), token_ids=token_ids)
    # 20 tokens that all share, 40 of the second row, 30 that the others share, 10 of each; 5 of those 30 are scored.
    pairs = 20 * 20 + 40 * 60 + 30 * 50 + 2 * 10 * 60
    assert flops.of_batch(batch, shares=True) == TrainedWork(110, 10.0 * 110 + pairs + 100.0 * (15 + 5 + 20), 70)
    assert flops.of_batch(batch) == TrainedWork(180, 10.0 * 180 + 3 * 60**2 + 100.0 * 45)


def test_experts_of_an_unknown_number_a_token_all_count_and_it_is_said(caplog):
    shape = SHAPE | {
        "moe_topk": [2, 2, 2],
        "num_experts": 8,
        "head_dim": 16,
    }  # a number for each layer, which the formula has not
    policy = _policy(HunYuanMoEV1Config(**shape))
    flops = PolicyFlops.of(policy).token
    matrices = [p for n, p in policy.model.named_parameters() if p.ndim > 1 and "embed" not in n]
    assert flops == 6 * sum(matrix.numel() for matrix in matrices)
    assert "does not say how many experts a token goes through" in caplog.text


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_the_peak_of_a_device_is_that_of_dense_matrices(name, tera):
    assert peak_by_name(name) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name", ["NVIDIA H100 NVL", "NVIDIA A10G", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D", ""]
)
def test_a_device_that_only_sounds_like_a_known_one_has_no_peak(name):
    assert peak_by_name(name) is None


def test_utilization_is_of_one_device_and_left_out_where_the_peak_is_unknown(monkeypatch):
    parts = [TrainedWork(300, 4e12, 40), TrainedWork(100, 2e12, 10)]
    cpu = torch.device("cpu")
    assert peak_flops(cpu) is None
    # 6 TFLOP in 2 s on two devices.
    metrics = {"tokens": 400.0, "shared_tokens": 50.0, "tokens_per_s": 200.0, "tflops_per_s": 1.5}
    assert training_metrics(parts, 2.0, cpu) == metrics
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert training_metrics(parts, 2.0, torch.device("cuda"))["mfu"] == pytest.approx(1.5 / 312)

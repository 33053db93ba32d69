"""Formulas against the tensors that autograd really saves, and against caches that are really there."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from appo.commands.plan.memory import (
    cache_bytes,
    layer_activations,
    log_prob_buffers,
    step_activations,
    step_workspace,
    weight_casts,
)
from appo.commands.plan.settings import Precision, RunSettings
from appo.commands.plan.size import PolicySize
from appo.engines.hf.kv_cache import KVCache, cache_shape
from appo.policy.lora import LoRA
from appo.policy.packing import SequenceForward

ROWS, TOKENS, HEAD_SIZE = 2, 32, 16
SHAPE = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": HEAD_SIZE,
}  # fmt: skip
PRECISIONS = {
    "float32": (torch.float32, False, Precision(4, 4, 4)),
    "bfloat16": (torch.bfloat16, False, Precision(2, 2, 2)),
    "autocast": (torch.float32, True, Precision(4, 2, 4)),
}


def tiny(model_type: str, dtype: torch.dtype = torch.float32, checkpointing: bool = False) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SHAPE), dtype=dtype).train()
    assert SequenceForward(model, model.get_decoder()).packs  # has the attention of training
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def saved_bytes(model: PreTrainedModel, autocast: bool) -> int:
    """Of all tensors that the decoder's forward pass saves, parameters left out, each storage once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    token_ids = torch.randint(0, 97, (ROWS, TOKENS))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model.get_decoder()(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_activations_are_those_that_autograd_saves(model_type, name):
    dtype, autocast, precision = PRECISIONS[name]
    model = tiny(model_type, dtype)
    size = PolicySize.of(model)
    # Sines and cosines are saved once for all rows and layers; the LM head's matrix is not cast by the decoder.
    rotary = 2 * TOKENS * HEAD_SIZE * precision.residual
    casts = weight_casts(size, precision) - (2 * size.lm_head_weights if autocast else 0)
    expected = ROWS * TOKENS * step_activations(size, precision, checkpointing=False) + rotary + casts
    assert saved_bytes(model, autocast) == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_checkpointing_leaves_the_inputs_of_layers(name):
    dtype, _, precision = PRECISIONS[name]
    model = tiny("qwen2", dtype, checkpointing=True)
    expected = ROWS * TOKENS * step_activations(PolicySize.of(model), precision, checkpointing=True)
    assert saved_bytes(model, autocast=False) == expected


@pytest.mark.parametrize("name", PRECISIONS)
def test_with_an_adapter_activations_are_nearly_those_that_autograd_saves(name):
    dtype, autocast, precision = PRECISIONS[name]
    model = tiny("qwen2", dtype)
    size = PolicySize.of(model, LoRA(rank=8))
    casts = weight_casts(size, precision) - (2 * size.lm_head_weights if autocast else 0)
    expected = ROWS * TOKENS * step_activations(size, precision, checkpointing=False) + casts
    # Of a layer that is not square, autograd saves a bias with its weight.
    assert saved_bytes(model, autocast) == pytest.approx(expected, rel=0.05)
    without = PolicySize.of(tiny("qwen2", dtype))
    assert step_activations(without, precision, False) != step_activations(size, precision, False)


def test_a_cache_takes_as_many_bytes_as_the_engine_allocates():
    model = tiny("qwen2")
    cache = KVCache(cache_shape(model), torch.bfloat16, torch.device("cpu"))
    cache.reserve(num_rows=3, length=128)
    assert cache.states.numel() * 2 == 3 * 128 * cache_bytes(PolicySize.of(model), 2)


def test_heads_of_a_cache_are_divided_until_each_process_has_one():
    size = PolicySize.of(tiny("qwen2"))
    whole = cache_bytes(size, 2)
    assert [cache_bytes(size, 2, parts) for parts in (1, 2, 4)] == [whole, whole // 2, whole // 2]


def test_log_prob_buffers_by_hand():
    size = PolicySize.of(tiny("qwen2"))
    # Two float32 logits of 10 tokens, half of that, and the gradient of the LM head.
    assert log_prob_buffers(size, 10, "cpu") == log_prob_buffers(size, 10, "cuda") == 7760 * 3 // 2 + 97 * 48 * 4
    # A chunk of 128 MiB holds 172,960 tokens on a CPU, and 8 times as many on a GPU.
    assert log_prob_buffers(size, 10**6, "cpu") == 172_960 * 776 * 3 // 2 + 97 * 48 * 4
    assert log_prob_buffers(size, 10**7, "cuda") == 1_383_687 * 776 * 3 // 2 + 97 * 48 * 4


def test_tensor_parallelism_divides_what_is_inside_a_layer():
    size, precision = PolicySize.of(tiny("qwen2")), Precision(2, 2, 2)
    whole, half = (layer_activations(size, precision, parts) for parts in (1, 2))
    inside = 2 * (2 * 64 + 2 * 32 + 4 * 160) + 4 * 4
    assert whole - half == inside // 2


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_workspace_is_that_of_the_head_or_of_a_layer(checkpointing):
    size, precision = PolicySize.of(tiny("qwen2")), Precision()

    def workspace(num_tokens: int, num_scored: int, **options: object) -> int:
        run = RunSettings(
            micro_batch_tokens=num_tokens, scored_tokens=num_scored, prompt_tokens=1, response_tokens=1, device="cpu",
            checkpointing=checkpointing, **options,
        )  # fmt: skip
        return step_workspace(size, run)

    assert workspace(1000, 0) == workspace(1000, 10)
    buffers = log_prob_buffers(size, 10**5, "cpu")
    assert workspace(10, 10**5) == buffers
    # Of a gathered head, the gradient is counted with those of gathered weights; it is summed up in float32 beside them
    # where they are shorter.
    assert workspace(10, 10**5, strategy="fsdp") == buffers - 97 * 48 * 4
    assert workspace(10, 10**5, strategy="fsdp", precision=Precision(4, 2, 2)) == buffers
    recomputed = 1000 * layer_activations(size, precision) if checkpointing else 0
    assert workspace(1000, 0) == recomputed + 1000 * (3 * 4 * 160 + 2 * 4 * 48) + 4 * 48 * 160

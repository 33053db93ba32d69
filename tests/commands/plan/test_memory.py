"""Formulas against the tensors that autograd really saves, and against caches that are really there."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from appo.commands.plan import (
    PolicySize,
    Precision,
    cache_bytes,
    layer_activations,
    log_prob_buffers,
    step_activations,
    step_workspace,
    weight_casts,
)
from appo.engines.hf.kv_cache import SlotCache
from appo.policy.packing import RowForward

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
    assert RowForward(model, model.get_decoder()).packs  # has the attention of training
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
    # Sines and cosines are saved once for all rows and layers; the output head's matrix is not cast by the decoder.
    rotary = 2 * TOKENS * HEAD_SIZE * precision.residual
    casts = weight_casts(size, precision) - (2 * size.vocab_size * size.hidden_size if autocast else 0)
    expected = ROWS * TOKENS * step_activations(size, precision, checkpointing=False) + rotary + casts
    assert saved_bytes(model, autocast) == expected


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_checkpointing_leaves_the_inputs_of_layers(name):
    dtype, _, precision = PRECISIONS[name]
    model = tiny("qwen2", dtype, checkpointing=True)
    expected = ROWS * TOKENS * step_activations(PolicySize.of(model), precision, checkpointing=True)
    assert saved_bytes(model, autocast=False) == expected


def test_a_cache_takes_as_many_bytes_as_the_engine_allocates():
    model = tiny("qwen2")
    cache = SlotCache(model.config, torch.bfloat16, torch.device("cpu"))
    cache.reserve(num_rows=3, length=128)
    assert cache.states.numel() * 2 == 3 * 128 * cache_bytes(PolicySize.of(model), 2)


def test_heads_of_a_cache_are_divided_until_each_process_has_one():
    size = PolicySize.of(tiny("qwen2"))
    whole = cache_bytes(size, 2)
    assert [cache_bytes(size, 2, parts) for parts in (1, 2, 4)] == [whole, whole // 2, whole // 2]


def test_log_prob_buffers_by_hand():
    size = PolicySize.of(tiny("qwen2"))
    # 10 tokens of 97 float32 logits, four times.
    assert log_prob_buffers(size, 10, None) == 4 * 10 * 97 * 4
    # Chunks of 5 tokens: 3880 bytes and half of that, and the head's gradient.
    assert log_prob_buffers(size, 10, 2 * 5 * 97 * 4) == 3880 * 3 // 2 + 97 * 48 * 4
    # Fewer tokens than a chunk could hold; a chunk holds at least one token.
    assert log_prob_buffers(size, 1, 10**9) == log_prob_buffers(size, 1000, 1) == 2 * 97 * 4 * 3 // 2 + 97 * 48 * 4


def test_tensor_parallelism_divides_what_is_inside_a_layer():
    size, precision = PolicySize.of(tiny("qwen2")), Precision(2, 2, 2)
    whole, half = (layer_activations(size, precision, parts) for parts in (1, 2))
    inside = 2 * (2 * 64 + 2 * 32 + 4 * 160) + 4 * 4
    assert whole - half == inside // 2


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_workspace_is_that_of_the_head_or_of_a_layer(checkpointing):
    size, precision = PolicySize.of(tiny("qwen2")), Precision()

    def workspace(num_scored: int) -> int:
        return step_workspace(size, precision, 1000, num_scored, checkpointing, None)

    assert workspace(0) == workspace(10)
    assert workspace(10**5) == log_prob_buffers(size, 10**5, None)
    # Of a gathered head, the gradient is counted with those of gathered weights.
    buffers, half = log_prob_buffers(size, 10**5, 10**7), Precision(4, 2, 2)
    of_gathered = [
        step_workspace(size, each, 10, 10**5, checkpointing, 10**7, is_gathered=True) for each in (precision, half)
    ]
    # It is summed up in float32 beside them where they are shorter.
    assert of_gathered == [buffers - 97 * 48 * 4, buffers]
    recomputed = 1000 * layer_activations(size, precision) if checkpointing else 0
    assert workspace(0) == recomputed + 1000 * (3 * 4 * 160 + 2 * 4 * 48) + 4 * 48 * 160

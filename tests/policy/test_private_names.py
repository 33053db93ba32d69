"""What is used of torch and transformers that they do not promise to keep: a failure here names what has moved."""

from __future__ import annotations

from inspect import signature

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_model_says_how_it_attends_and_whether_it_keeps_a_state():
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=7, **SIZES), attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert not model._is_stateful


def test_attention_takes_a_layer_and_repeats_heads():
    names = list(signature(sdpa_attention_forward).parameters)
    assert names[:5] == ["module", "query", "key", "value", "attention_mask"]
    assert names[-1] == "kwargs"
    heads = torch.arange(2.0).view(1, 2, 1, 1)
    assert repeat_kv(heads, 2).flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


def test_masks_are_made_by_a_function_of_lengths():
    mask = sdpa_mask(batch_size=1, q_length=3, kv_length=3, allow_is_causal_skip=False)
    assert torch.equal(mask[0, 0], torch.ones(3, 3).tril().bool())


def test_a_configuration_names_the_styles_of_tensor_parallelism():
    assert LlamaConfig.base_model_tp_plan["layers.*.self_attn.q_proj"] == "colwise"


def test_attention_functions_are_found_by_name():
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def test_the_attention_kernel_of_a_cpu_aligns_its_mask_to_the_begin_and_has_a_backward_pass():
    kernels = torch.ops.aten
    query, key = torch.randn(1, 1, 5, 8), torch.randn(1, 1, 3, 8)
    output, log_sums = kernels._scaled_dot_product_flash_attention_for_cpu(query, key, key, 0.0, True, scale=1.0)
    scores = (query @ key.mT).masked_fill(torch.ones(5, 3).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(output, scores.softmax(-1) @ key)
    torch.testing.assert_close(log_sums, scores.logsumexp(-1))
    backward = kernels._scaled_dot_product_flash_attention_for_cpu_backward.default._schema
    names = ["grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal", "attn_mask", "scale"]
    assert [argument.name for argument in backward.arguments] == names

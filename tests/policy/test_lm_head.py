"""Heads of model families: the model's own logits are the definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from appo.policy.lm_head import find_lm_head
from appo.policy.precision import float32_products

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "bias": PhiConfig(**SIZES),
    "soft-capped": Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=1, final_logit_softcapping=0.05),
    "multiplied": CohereConfig(**SIZES),
    "divided": GraniteConfig(**SIZES, logits_scaling=8.0),
    "multiplied under another name": FalconH1Config(
        **SIZES,
        num_key_value_heads=1,
        lm_head_multiplier=0.5,
        mamba_d_ssm=16,
        mamba_n_heads=2,
        mamba_d_head=8,
        mamba_d_state=8,
    ),
}


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    """Untrained, with a bias that shows where the head has one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    bias = model.get_output_embeddings().bias
    if bias is not None:
        nn.init.normal_(bias)
    return model


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_log_probs_of_hidden_states_are_those_of_the_logits_of_the_model(config, temperature):
    model = model_of(config)
    token_ids = torch.randint(3, 32, (1, 8))
    head = find_lm_head(model)
    hidden = model.get_decoder()(input_ids=token_ids).last_hidden_state
    log_probs, entropies = head.log_probs(hidden[0, :-1], token_ids[0, 1:], temperature)
    log_p = (model(input_ids=token_ids).logits[0, :-1] / temperature).log_softmax(-1)
    torch.testing.assert_close(log_probs, log_p.gather(-1, token_ids[0, 1:, None])[:, 0])
    torch.testing.assert_close(entropies, -(log_p.exp() * log_p).sum(-1))


class ScaledLinear(nn.Linear):
    """As layers with an adapter or quantized weights: a linear layer by its class, and more by what it does."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2.0 * super().forward(hidden)


def test_a_layer_that_does_more_than_a_linear_one_is_none():
    model = model_of(FAMILIES["untied"])
    model.set_output_embeddings(ScaledLinear(16, 32, bias=False))
    assert find_lm_head(model) is None


def test_an_adapter_on_the_head_is_no_linear_layer_and_one_elsewhere_leaves_it_one():
    peft = pytest.importorskip("peft")
    on_head = peft.get_peft_model(model_of(FAMILIES["untied"]), peft.LoraConfig(target_modules=["lm_head"]))
    assert find_lm_head(on_head) is None
    elsewhere = peft.get_peft_model(model_of(FAMILIES["tied"]), peft.LoraConfig(target_modules=["q_proj"]))
    assert find_lm_head(elsewhere) is not None


def test_logits_that_are_changed_behind_the_head_are_found_out():
    model = model_of(FAMILIES["divided"])
    # The model divides by what its configuration says when it runs; a name that is not known here is not followed.
    model.config.logits_scaling = 1.0
    assert find_lm_head(model).transform.scale == 1.0
    model.register_forward_hook(lambda module, args, output: output.__class__(logits=output.logits * 2.0))
    assert find_lm_head(model) is None


def test_logits_are_compared_with_all_digits_of_float32_and_the_setting_comes_back():
    model, seen = model_of(FAMILIES["untied"]), []
    for module in (model, model.get_output_embeddings()):
        module.register_forward_pre_hook(lambda module, args: seen.append(torch.backends.cuda.matmul.fp32_precision))
    with float32_products("tf32"):
        assert find_lm_head(model) is not None
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    # The model, its head, and the head alone.
    assert seen == ["ieee"] * 3

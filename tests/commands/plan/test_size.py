from __future__ import annotations

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, MixtralConfig

from appo.commands.plan.shapes import SHAPES
from appo.commands.plan.size import PolicySize

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral"])
def test_counts_are_those_of_the_real_tensors(model_type, tie_word_embeddings):
    shape = {"model_type": model_type, **SMALL, "tie_word_embeddings": tie_word_embeddings}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    size = PolicySize.of_config(AutoConfig.for_model(**shape))
    # Parameters that are tied come once.
    assert size.num_weights == sum(p.numel() for p in model.parameters())
    assert size.layer_weights == sum(p.numel() for p in model.model.layers[0].parameters())
    assert size.linear_layer_weights == sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    assert size.lm_head_weights == size.largest_weight == 97 * 32
    assert size.vocabulary_weights == (1 if tie_word_embeddings else 2) * 97 * 32
    assert (size.attention_size, size.kv_size) == (64, 32)


def test_public_models_have_as_many_weights_as_their_cards_say():
    # https://huggingface.co/Qwen/Qwen2.5-7B-Instruct: 7.61 B, of 14B 14.7 B; meta-llama/Llama-3.1-70B-Instruct: 70.6 B.
    sizes = {name: PolicySize.of_config(AutoConfig.for_model(**shape)) for name, shape in SHAPES.items()}
    billions = {name: size.num_weights / 1e9 for name, size in sizes.items()}
    assert billions["Qwen2.5-7B"] == pytest.approx(7.61, abs=0.01)
    assert billions["Qwen2.5-14B"] == pytest.approx(14.7, abs=0.1)
    assert billions["Llama-3.1-70B"] == pytest.approx(70.6, abs=0.1)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=97, n_embd=32, n_layer=1, n_head=2),
        MixtralConfig(**SMALL, num_local_experts=2),
    ],
    ids=lambda config: config.model_type,
)
def test_layers_of_another_kind_are_refused(config):
    with pytest.raises(ValueError, match=r"model\.policy must have layers of q_proj, .* to be planned, got"):
        PolicySize.of_config(config)

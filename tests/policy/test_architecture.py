"""What the configuration of a policy says of its attention."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from appo.policy.architecture import exact_attention, has_state, longest_sequence, num_kv_heads
from appo.policy.loading import load_policy
from tests.families.policies import build


def test_soft_caps_of_attention_scores_are_not_left_out(tmp_path):
    folder = build("gemma2", tmp_path)
    config = AutoConfig.from_pretrained(folder)
    config.attn_logit_softcapping = 1.0
    config.save_pretrained(folder)
    token_ids = torch.arange(5, 25).unsqueeze(0)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    torch.testing.assert_close(load_policy(str(folder))(token_ids).logits, plain(token_ids).logits)
    with pytest.raises(ValueError, match=r"model.attention must be null, eager or .* for gemma2, .* got sdpa"):
        load_policy(str(folder), attention="sdpa")


@pytest.mark.parametrize(
    ("family", "attention"), [("llama", None), ("gemma2", "eager"), ("gptj", "eager"), ("gemma3_text", None)]
)
def test_attention_is_written_out_where_torchs_own_does_not_do(family, attention):
    assert exact_attention(AutoConfig.for_model(family)) == attention


@pytest.mark.parametrize(("family", "number"), [("llama", 32), ("falcon", 1), ("mistral", 8), ("gpt_bigcode", 1)])
def test_heads_of_keys_are_counted_by_the_names_that_configs_have(family, number):
    assert num_kv_heads(AutoConfig.for_model(family)) == number


@pytest.mark.parametrize(
    ("family", "carries"), [("mamba", True), ("qwen3_next", True), ("llama", False), ("gpt_oss", False)]
)
def test_a_state_is_known_by_the_class_or_the_kinds_of_layers(family, carries):
    assert has_state(AutoConfig.for_model(family)) == carries


@pytest.mark.parametrize(("max_length", "length"), [(0, 2048), (1, 1), (2048, 2048)])
def test_a_sequence_may_be_as_long_as_asked_or_as_the_policy_has_positions(max_length, length):
    assert longest_sequence(AutoConfig.for_model("llama"), max_length) == length


def test_more_than_the_positions_is_refused_and_none_where_a_policy_does_not_say():
    with pytest.raises(ValueError, match="max_length must not exceed the policy's 2048 positions, got 2049"):
        longest_sequence(AutoConfig.for_model("llama"), 2049)
    with pytest.raises(ValueError, match=r"max_length must be positive for bloom, whose .* no last position, got 0"):
        longest_sequence(AutoConfig.for_model("bloom"), 0)
    assert longest_sequence(AutoConfig.for_model("bloom"), 7) == 7

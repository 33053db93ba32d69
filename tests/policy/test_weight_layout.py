"""The weights of a policy under the names that a checkpoint has for them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from appo.policy.saving import named_weights
from appo.policy.weight_layout import WeightLayout
from tests.families.policies import build


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral", "granitemoe", "deepseek_v2", "gpt_neox"])
def test_weights_are_those_that_a_checkpoint_holds(tmp_path, family):
    policy = build(family, tmp_path / "policy")
    model = AutoModelForCausalLM.from_pretrained(policy)
    expected = load_file(policy / "model.safetensors")
    # Read once, one at a time, and without the model that brings them.
    saved = dict(WeightLayout.of_policy(str(policy)).saved(named_weights(model)))
    assert saved.keys() == expected.keys()
    for name, tensor in saved.items():
        assert torch.equal(tensor, expected[name]), name


def test_weights_are_checked_before_they_are_converted(tmp_path):
    policy = build("qwen3_moe", tmp_path / "policy")
    layout = WeightLayout.of_policy(str(policy))
    with pytest.raises(ValueError, match="weights must be named like parameters of Qwen3MoeForCausalLM, got 'x'"):
        list(layout.saved([("x", torch.zeros(1))]))
    name, shape = next((name, shape) for name, shape in layout.shapes.items() if "experts" in name)
    with pytest.raises(ValueError, match="weights must name every parameter of Qwen3MoeForCausalLM, missing"):
        list(layout.saved([(name, torch.zeros(shape))]))

"""Pairs of processes that compute every decoder layer together, against one that computes it alone."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from transformers import AutoConfig, Qwen3Config

from appo.distributed.fsdp import Meshes, Sharding, clip_gradients
from appo.distributed.tensor_parallel import check_split
from appo.policy.loading import load_policy, load_sharded_policy
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.saving import named_weights
from tests.distributed.processes import as_processes
from tests.engines.tiny_policy import make_model, make_tokenizer

SHARDING = Sharding()


def split(policy: str, rank: int) -> tuple[Meshes, torch.nn.Module]:
    shape = (dist.get_world_size() // 2, 2)
    meshes = Meshes.of(init_device_mesh("cpu", shape, mesh_dim_names=("data_parallel", "tensor_parallel")))
    assert meshes is not None
    return meshes, load_sharded_policy(lambda: load_policy(policy if rank == 0 else "no/such/policy"), SHARDING, meshes)


def largest_distance(model: torch.nn.Module, alone: torch.nn.Module) -> float:
    """Of the gradients of a split policy, relative to the norm of those of the whole one."""
    whole = {name: parameter.grad for name, parameter in alone.named_parameters()}
    return max(
        float((parameter.grad.full_tensor() - whole[name]).norm() / whole[name].norm())
        for name, parameter in model.named_parameters()
    )


def compare(rank: int, policy: str) -> None:
    """Log-probs, entropies, gradients and their norm; every two processes have rows of their own."""
    meshes, model = split(policy, rank)
    alone = load_policy(policy)
    weights = dict(alone.named_parameters(remove_duplicate=False))
    for name, weight in named_weights(model):
        assert torch.equal(weight, weights.pop(name)), name
    assert not weights
    parts = dict(model.named_parameters())
    num_groups = meshes.data.size()
    for name in ("up", "down"):
        assert parts[f"model.layers.0.mlp.{name}_proj.weight"].to_local().numel() == 48 * 64 / 2 / num_groups
    evaluate, evaluate_alone = PolicyLogProbs(model, 0.7, meshes.tensor), PolicyLogProbs(alone, 0.7)
    generator = torch.Generator().manual_seed(0)
    # Two rows share 18 tokens, which go through the layers once.
    rows = torch.arange(72).view(3, 24) % 36
    rows[1, :18] = rows[0, :18]
    assert evaluate.shares
    several = torch.rand(3, 24, generator=generator) < 0.5
    several[:, 0] = False
    one = torch.zeros(3, 24, dtype=torch.bool)
    one[1, 4] = True
    for mask in (several, one):
        coefficients = torch.randn(2, 3, 24, generator=generator)
        for group in range(num_groups):
            token_ids = rows + group
            expected = torch.stack(evaluate_alone(token_ids, mask))
            ((expected * coefficients).sum() / num_groups).backward()
            if group == meshes.data.get_local_rank():
                values = torch.stack(evaluate(token_ids, mask))
                torch.testing.assert_close(values, expected, atol=2e-6, rtol=1e-5)
                (values * coefficients).sum().backward()
        assert largest_distance(model, alone) <= 5e-5
        norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.5)
        torch.testing.assert_close(clip_gradients(model.parameters(), 0.5), norm, atol=0.0, rtol=1e-5)
        assert largest_distance(model, alone) <= 5e-5
        model.zero_grad()
        alone.zero_grad()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("architecture", "tie", "processes"), [("llama", True, 2), ("qwen2", False, 2), ("qwen3", True, 4)]
)
def test_a_split_policy_says_and_learns_what_the_whole_does(tmp_path, architecture, tie, processes):
    policy = tmp_path / "policy"
    model = make_model(architecture, len(make_tokenizer()), tie=tie, num_kv_heads=2)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    model.save_pretrained(policy)
    as_processes(compare, tmp_path, str(policy), num=processes)


def count_collectives(rank: int, policy: str) -> None:
    _, model = split(policy, rank)
    with CommDebugMode() as sent:
        model(input_ids=torch.arange(8).unsqueeze(0), use_cache=False).logits.sum().backward()
    # Twice forward and twice back in each of two layers.
    assert sent.get_comm_counts()[torch.ops.c10d_functional.all_reduce] == 8
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, DTensor) and each.shape[:2] == (1, 8)]


@pytest.mark.distributed
def test_a_layer_takes_four_collectives_and_leaves_nothing_in_memory(tmp_path):
    policy = tmp_path / "policy"
    make_model("qwen2", len(make_tokenizer()), num_kv_heads=2).save_pretrained(policy)
    as_processes(count_collectives, tmp_path, str(policy))


def forget_norms_of_heads(rank: int, policy: str) -> None:
    styles = Qwen3Config.base_model_tp_plan
    Qwen3Config.base_model_tp_plan = {name: style for name, style in styles.items() if "_norm" not in name}
    with pytest.raises(ValueError, match=r"must say how model\.layers\.0\.self_attn\.q_norm\.weight"):
        split(policy, rank)


@pytest.mark.distributed
def test_a_weight_that_a_model_says_nothing_of_is_found_before_it_is_trained(tmp_path):
    policy = tmp_path / "policy"
    make_model("qwen3", len(make_tokenizer()), num_kv_heads=2).save_pretrained(policy)
    as_processes(forget_norms_of_heads, tmp_path, str(policy))


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        ({"model_type": "gpt2"}, 2, "must say how its layers are split .* got none for gpt2"),
        ({"model_type": "mixtral"}, 2, "must be split by colwise, .* got .*moe_tp_experts.* for mixtral"),
        ({"model_type": "qwen2", "num_key_value_heads": 4}, 8, "must divide num_key_value_heads = 4 .*, got 8"),
        ({"model_type": "llama", "attention_dropout": 0.1}, 2, "must have no dropout .* got attention_dropout=0.1"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_split_is_refused(model, size, message):
    with pytest.raises(ValueError, match=message):
        check_split(AutoConfig.for_model(**model), size)

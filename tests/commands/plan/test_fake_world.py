"""Policies of real size as one of many processes holds them: tensors have shapes alone, nobody else is there."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from appo.commands.plan.plan import plan_memory
from appo.commands.plan.settings import Precision, RunSettings
from appo.commands.plan.shapes import SHAPES
from appo.commands.plan.size import PolicySize
from appo.distributed.fsdp import Meshes, Sharding, clip_gradients, decoder_layers
from appo.functional import linear_log_probs
from appo.policy.architecture import empty_model
from tests.distributed.processes import as_first_of

pytestmark = pytest.mark.distributed

SHARDING = Sharding(param_dtype="bfloat16", reduce_dtype="float32")
TOKENS = 64
LAYERS = 2
"""Of the policy that is updated: all layers are alike, and each takes a second."""


def planned(config: PreTrainedConfig, num: int, tensor: int) -> dict[str, int]:
    """Bytes of every item of the plan."""
    run = RunSettings(num, strategy="fsdp", tensor_parallel=tensor, precision=Precision(4, 2, 2), checkpointing=True)
    return {item.name: item.num_bytes for item in plan_memory(PolicySize.of_config(config), run).items}


def own_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Of the shards that this process holds."""
    return sum(tensor.to_local().nbytes for tensor in tensors if isinstance(tensor, DTensor))


def update(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Log-probs of some tokens, their gradients, a norm of all of them and a step."""

    def score(token_ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = model.get_decoder()(input_ids=token_ids, use_cache=False)[0]
        return linear_log_probs(hidden[0, :-1], model.get_output_embeddings().weight, None, token_ids[0, 1:])

    model.score = score
    register_fsdp_forward_method(model, "score")
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    log_probs, entropies = model.score(torch.zeros(1, TOKENS, dtype=torch.int64))
    assert log_probs.shape == entropies.shape == (TOKENS - 1,)
    (log_probs.sum() + entropies.sum()).backward()
    assert clip_gradients(model.parameters(), 1.0).shape == ()
    optimizer.step()
    return optimizer


def meshes_of(num: int, tensor: int) -> Meshes:
    mesh = init_device_mesh("cpu", (num // tensor, tensor), mesh_dim_names=("data_parallel", "tensor_parallel"))
    meshes = Meshes.of(mesh)
    assert meshes is not None
    return meshes


def check_shards(num: int, shape: str, tensor: int) -> None:
    """All layers, as a process without weights of its own makes them."""
    config = AutoConfig.for_model(**SHAPES[shape])
    model = empty_model(config, torch.float32)
    SHARDING(model, meshes_of(num, tensor))
    assert len(decoder_layers(model)) == config.num_hidden_layers
    assert own_bytes(model.parameters()) == pytest.approx(planned(config, num, tensor)["weights"], rel=0.02)


def check_update(num: int, shape: str) -> None:
    meshes, config = meshes_of(num, 1), AutoConfig.for_model(**SHAPES[shape] | {"num_hidden_layers": LAYERS})
    expected = planned(config, num, 1)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        SHARDING(model, meshes)
        optimizer = update(model)
        states = [state for each in optimizer.state.values() for name, state in each.items() if name != "step"]
        for name, tensors in (
            ("weights", model.parameters()),
            ("gradients", (parameter.grad for parameter in model.parameters())),
            ("optimizer state", states),
        ):
            assert own_bytes(tensors) == pytest.approx(expected[name], rel=0.02), name


CASES = [*product(SHAPES, (8, 64), (1,)), ("Llama-3.1-70B", 64, 8)]


@pytest.mark.parametrize(("shape", "num", "tensor"), CASES)
def test_a_shard_takes_what_was_planned(shape, num, tensor):
    as_first_of(num, check_shards, shape, tensor)


@pytest.mark.parametrize(("shape", "num"), product(SHAPES, (8, 64)))
def test_an_update_leaves_gradients_and_a_state_as_large_as_was_planned(shape, num):
    as_first_of(num, check_update, shape)

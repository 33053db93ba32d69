"""What a step is said to need, against what it has once it ran."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from appo.policy.log_probs import PolicyLogProbs
from appo.policy.lora import Adapter, LoRA
from appo.policy.step_memory import memory_of_step
from tests.small_run import run


def tiny(num_layers: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=331, num_hidden_layers=num_layers, **sizes))


def num_bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p),
        lambda p: torch.optim.AdamW(p, fused=True, amsgrad=True),
        lambda p: torch.optim.SGD(p, momentum=0.9),
        lambda p: torch.optim.Adafactor(p),
    ],
)
def test_weights_gradients_and_optimizer_are_exact(with_adapter, make):
    model = tiny()
    if with_adapter:
        Adapter(model, LoRA(rank=4))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make(trained)
    need = memory_of_step(model, tiny(1), optimizer, 100)
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())
    token_ids = torch.randint(0, 331, (1, 10))
    PolicyLogProbs(model)(token_ids, torch.arange(10)[None] > 0)[0].sum().backward()
    optimizer.step()
    assert need.weights == num_bytes([*model.parameters(), *model.buffers()])
    assert need.reference == num_bytes(tiny(1).parameters())
    assert need.gradients == num_bytes(parameter.grad for parameter in trained)
    state = [
        value for values in optimizer.state.values() for value in values.values() if isinstance(value, torch.Tensor)
    ]
    assert need.optimizer == num_bytes(state)
    assert need.total == sum(
        (need.weights, need.reference, need.gradients, need.optimizer, need.activations, need.log_probs)
    )


def kept_by_a_pass(model, length: int) -> int:
    """Bytes of all storages that the decoder keeps for a backward pass over one row."""
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), *model.buffers())}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = model.get_decoder()(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=False)
    del outputs
    return sum(size for address, size in kept.items() if address not in own)


def test_activations_grow_as_those_of_a_long_row_do():
    model = tiny(4).train()
    optimizer = torch.optim.AdamW(model.parameters())
    estimate = memory_of_step(model, None, optimizer, 1000).activations
    assert estimate == pytest.approx(kept_by_a_pass(model, 1000), rel=0.05)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = memory_of_step(model, None, optimizer, 1000).activations
    assert model.is_gradient_checkpointing
    # The inputs of four layers, and all of one.
    assert estimate / 4 < checkpointed < estimate / 2


def test_the_random_numbers_of_the_training_are_not_touched():
    model = tiny().train()
    Adapter(model, LoRA(dropout=0.5))
    before = torch.get_rng_state()
    memory_of_step(model, None, torch.optim.AdamW([torch.zeros(1)]), 100)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_reports_before_its_first_step(tmp_path, policy_folder, caplog):
    caplog.set_level("INFO")
    run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--model.memory_report=true", "--model.loss.kl_coef=0.1",
    )  # fmt: skip
    report = next(record.getMessage() for record in caplog.records if record.name == "appo.training.module")
    assert report.startswith("one step needs about\nweights ")
    sizes = {line.split()[0]: float(line.split()[1]) for line in report.splitlines()[1:]}
    assert sizes["reference"] == pytest.approx(sizes["weights"], rel=0.01)
    assert sizes["optimizer"] == pytest.approx(2 * sizes["gradients"], rel=0.05)

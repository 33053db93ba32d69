"""Weights of 4 bits and optimizers of 8, with the real bitsandbytes, which also has kernels for CPUs."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from appo.commands import cli
from appo.commands.export import export_policy
from appo.commands.plan.plan import plan_memory
from appo.commands.plan.settings import RunSettings
from appo.commands.plan.size import PolicySize
from appo.monitoring.trajectory_files import read_trajectories
from appo.policy.loading import load_policy
from appo.policy.log_probs import PolicyLogProbs
from appo.policy.lora import Adapter, LoRA
from appo.policy.weight_layout import WeightLayout
from tests.small_run import CONFIG, run
from tests.training.callbacks.test_fit import history, weights

bitsandbytes = pytest.importorskip("bitsandbytes")

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
QLORA = LoRA(rank=4, quantize="nf4")


@pytest.fixture(autouse=True)
def _weights_stay_where_they_are(monkeypatch) -> None:
    """Some CPUs would evaluate in bfloat16 from a layout of their own, which a GPU does not have."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture
def folder(tmp_path) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=97, **SIZES)).save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


def quantized(folder: str) -> Adapter:
    adapter = Adapter(load_policy(folder, quantization=QLORA.quantization("float32")), QLORA)
    torch.manual_seed(1)
    for name, parameter in adapter.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def test_engines_and_folders_get_the_numbers_that_the_quantized_policy_computes_with(tmp_path, folder):
    adapter = quantized(folder)
    assert any(type(parameter).__name__ == "Params4bit" for parameter in adapter.model.parameters())
    streamed = dict(WeightLayout.of_policy(folder).checked(adapter.named_weights()))
    adapter.merged().save_pretrained(tmp_path / "merged")
    merged = load_policy(str(tmp_path / "merged"))
    assert not hasattr(merged.config, "quantization_config")
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(streamed[name], parameter.detach())
    token_ids = torch.randint(0, 97, (2, 12))
    mask = torch.arange(12).expand(2, 12) > 3
    torch.testing.assert_close(
        PolicyLogProbs(merged.eval())(token_ids, mask)[0],
        PolicyLogProbs(adapter.model.eval())(token_ids, mask)[0],
        atol=1e-4,
        rtol=1e-4,
    )


def test_gradients_reach_the_adapter_through_quantized_layers(folder):
    model = quantized(folder).model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    token_ids = torch.randint(0, 97, (2, 12))
    PolicyLogProbs(model)(token_ids, torch.arange(12).expand(2, 12) > 3)[0].sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 2
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)


def test_a_plan_counts_weights_of_4_bits_states_of_8_and_the_adapter(folder, capsys, monkeypatch):
    # Made for this machine, the plan needs no GPU.
    monkeypatch.setattr(LoRA, "check_installed", lambda self: None)
    config = AutoConfig.from_pretrained(folder)
    model = quantized(folder).model
    plan = plan_memory(PolicySize.of_config(config, QLORA), RunSettings(is_quantized=True, state_bytes=2.0))
    planned = {item.name: item.num_bytes for item in plan.items}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    scales = sum(
        state.absmax.nbytes + state.state2.absmax.nbytes
        for state in (getattr(parameter, "quant_state", None) for parameter in frozen)
        if state is not None
    )
    assert planned["adapter"] == planned["gradients"] == sum(parameter.nbytes for parameter in trained)
    assert planned["optimizer state"] == 2 * sum(parameter.numel() for parameter in trained)
    assert planned["weights"] == pytest.approx(scales + sum(parameter.nbytes for parameter in frozen), rel=0.01)
    cli.run(
        ["plan", "--config", CONFIG, f"--model.policy={folder}", "--gpu-memory-gib=0.001", "--model.lora.quantize=nf4",
         "--model.optimizer=bitsandbytes.optim.AdamW8bit"]
    )  # fmt: skip
    assert "adapter" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_with_quantized_weights_samples_from_what_it_trains_and_resumes(tmp_path, policy_folder, monkeypatch):
    # A GPU is what makes it fast; what is computed is the same.
    monkeypatch.setattr(LoRA, "check_installed", lambda self: None)
    options = [
        "--model.lora.quantize=nf4", "--rollout.reward=tests.small_run.EvenTokens", "--model.loss.kl_coef=0.1",
        "--model.optimizer=bitsandbytes.optim.AdamW8bit", "--model.optimizer.lr=0.01",
    ]  # fmt: skip
    folder = run("fit", tmp_path, policy_folder, "--trainer.max_epochs=1", *options)
    run("fit", tmp_path, policy_folder, "--trainer.max_epochs=2", "--ckpt_path=last", *options)
    assert [row["train/skipped_steps"] for row in history(folder)] == [0]
    # The engine had the quantized weights from the first token on: versions begin at 1, two updates are an iteration.
    for iteration, version in enumerate((1, 3)):
        records = read_trajectories(folder / f"trajectories/iteration_{iteration:05d}.jsonl.zst")
        assert {v for record in records for v in record["policy_versions"]} >= {-1, version}
    exported = weights(folder / "policy")
    assert exported.keys() == weights(policy_folder).keys()
    assert all(tensor.dtype == torch.float32 for tensor in exported.values())
    # A checkpoint has the adapter alone, which belongs to the quantized policy, not to the one in the folder.
    export_policy(folder / "checkpoints/last.ckpt", tmp_path / "out")
    again = weights(tmp_path / "out")
    assert again.keys() == exported.keys()
    for name, tensor in again.items():
        assert torch.equal(tensor, exported[name]), name

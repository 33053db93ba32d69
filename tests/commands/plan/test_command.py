from __future__ import annotations

import pytest

from appo.commands import cli
from tests.small_run import CONFIG


def plan(capsys, *options: str) -> str:
    cli.run(["plan", "--config", CONFIG, *options])
    return capsys.readouterr().out


def row(text: str, name: str) -> list[float]:
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return [float(value) for value in line.removeprefix(name).split()]


def test_a_run_is_planned_from_its_own_settings(capsys, policy_folder):
    text = plan(capsys, f"--model.policy={policy_folder}", "--gpu-memory-gib=16")
    assert "1 x 16 GiB, one process" in text
    assert "fits: " in text
    # 32 prompts with 6 initial trajectories of 64 + 320 tokens.
    assert "73,728 tokens, 192 trajectories of 384 tokens at once; 256 are allowed, 192 wanted" in text


SEVEN = ("--shape=Qwen2.5-7B", "--rollout.engine=VLLMEngine")
WEIGHTS_GIB = 7_615_616_512 * 4 / 2**30


@pytest.mark.parametrize(
    ("options", "name", "weights"),
    [
        (["--gpus=8"], "ddp", WEIGHTS_GIB),
        (["--trainer.devices=4", "--trainer.num_nodes=2", "--trainer.strategy=fsdp2"], "shards", WEIGHTS_GIB / 8),
        (["--gpus=8", "--trainer.strategy=fsdp2", "--model.dtype=bfloat16"], "shards", WEIGHTS_GIB / 16),
        (["--gpus=8", "--trainer.strategy=fsdp2", "--model.dtype=auto"], "shards", WEIGHTS_GIB / 16),
        (
            [
                "--gpus=8",
                "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
                "--trainer.strategy.data_parallel_size=4",
                "--trainer.strategy.tensor_parallel_size=2",
            ],
            "shards (fsdp2), 2 GPUs a layer",
            WEIGHTS_GIB / 8,
        ),
    ],
)
def test_strategies_divide_the_weights(capsys, options, name, weights):
    text = plan(capsys, *SEVEN, *options)
    assert name in text.splitlines()[0]
    assert row(text, "weights   ") == pytest.approx([weights] * 4, abs=0.01)


SPLIT = "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"


@pytest.mark.parametrize(
    ("options", "gpus_a_layer"),
    [
        (["--trainer.devices=4", "--trainer.num_nodes=2"], 4),
        (["--trainer.devices=4", "--trainer.num_nodes=2", "--trainer.strategy.data_parallel_size=2"], 4),
        (["--gpus=8", "--trainer.num_nodes=4"], 2),
        (["--gpus=8", "--trainer.strategy.data_parallel_size=4", "--trainer.strategy.tensor_parallel_size=2"], 2),
    ],
)
def test_a_node_computes_layers_together_if_nothing_else_is_said(capsys, options, gpus_a_layer):
    text = plan(capsys, *SEVEN, SPLIT, *options)
    assert text.splitlines()[0].endswith(f"8 x 80 GiB, shards (fsdp2), {gpus_a_layer} GPUs a layer")
    assert row(text, "weights   ") == pytest.approx([WEIGHTS_GIB / 8] * 4, abs=0.01)


def test_one_gpu_is_sharded_too(capsys):
    text = plan(capsys, *SEVEN, SPLIT, "--gpus=1")
    assert text.splitlines()[0].endswith("1 x 80 GiB, shards (fsdp2)")
    assert len(row(text, "unsharded layers")) == 2


def test_every_process_samples_its_own_prompts(capsys):
    # 32 prompts with 6 initial trajectories, on 8 processes, 4 of which compute layers together.
    options = ["--gpus=8", "--trainer.strategy.data_parallel_size=2", "--trainer.strategy.tensor_parallel_size=4"]
    assert "256 are allowed, 24 wanted" in plan(capsys, *SEVEN, SPLIT, *options)


def test_weights_are_gathered_in_the_precision_that_shards_are_cast_to(capsys):
    options = [*SEVEN, "--gpus=8", "--trainer.strategy=fsdp2"]
    single = row(plan(capsys, *options), "unsharded layers")[0]
    for mixed in ("--model.sharding.param_dtype=bfloat16", "--trainer.precision=bf16-mixed"):
        text = plan(capsys, *options, mixed)
        assert row(text, "unsharded layers")[0] == pytest.approx(single / 2, abs=0.01)
        assert "casts of weights" not in text
    # Without shards, every operation casts its weight.
    assert "casts of weights" in plan(capsys, *SEVEN, "--trainer.precision=bf16-mixed")


def test_a_precision_that_a_fit_refuses_is_refused(capsys):
    with pytest.raises(SystemExit):
        plan(capsys, *SEVEN, "--trainer.precision=bf16-true")
    assert "trainer.precision must be 32-true or bf16-mixed, got bf16-true" in capsys.readouterr().err


@pytest.mark.parametrize(("optimizer", "states"), [("AdamW", 2), ("SGD", 0), ("RMSprop", 1)])
def test_optimizer_state_is_what_the_optimizer_keeps(capsys, optimizer, states):
    text = plan(capsys, *SEVEN, "--gpus=8", "--trainer.strategy=fsdp2", f"--model.optimizer=torch.optim.{optimizer}")
    if states:
        assert row(text, "optimizer state")[0] == pytest.approx(states * WEIGHTS_GIB / 8, abs=0.01)
    else:
        assert "optimizer state" not in text


def test_a_loss_with_a_reference_takes_another_shard(capsys):
    options = [*SEVEN, "--gpus=8", "--trainer.strategy=fsdp2"]
    assert "reference" not in plan(capsys, *options)
    assert row(plan(capsys, *options, "--model.loss.kl_coef=0.1"), "reference") == [round(WEIGHTS_GIB / 8, 2)] * 4


def test_a_run_that_does_not_fit_is_told_what_helps(capsys):
    text = plan(capsys, *SEVEN, "--gpus=8", "--rollout.limits.max_response_tokens=8192")
    assert "does not fit: " in text
    assert "fits with model.gradient_checkpointing=true, trainer.strategy=fsdp2" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--shape=Qwen9"],
            "shape must be one of Qwen2.5-7B, Qwen2.5-14B, Llama-3.1-8B, Qwen3-8B, Qwen3-14B, Llama-3.1-70B, got 'Qwen",
        ),
        (["--model.policy=./nowhere"], "model.policy must be a Hugging Face model folder with a config.json"),
        (["--shape=Qwen2.5-7B", "--trainer.strategy=deepspeed"], "trainer.strategy must be auto, ddp, fsdp, fsdp2"),
        (["--shape=Qwen2.5-7B", "--gpus=-1"], "gpus must be positive, got -1"),
        (
            ["--shape=Qwen2.5-7B", SPLIT, "--gpus=8", "--trainer.strategy.tensor_parallel_size=4"],
            "data_parallel_size x tensor_parallel_size of trainer.strategy must be the number of GPUs, 8, got 1 x 4",
        ),
        (
            ["--shape=Qwen2.5-7B", SPLIT, "--gpus=8"],
            "tensor_parallel_size must divide num_attention_heads = 28 of model.policy, got 8",
        ),
        (
            ["--shape=Qwen2.5-7B", SPLIT, "--gpus=2", "--model.lora.rank=4"],
            "model.lora must be null with trainer.strategy.tensor_parallel_size = 2",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(capsys, options, message):
    with pytest.raises(SystemExit):
        plan(capsys, *options)
    assert message in capsys.readouterr().err

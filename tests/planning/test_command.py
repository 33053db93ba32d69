from __future__ import annotations

import pytest

from appo import cli
from tests.toy import CONFIG


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
    text = plan(capsys, *SEVEN, "--gpus=8", "--rollout.max_response_tokens=8192")
    assert "does not fit: " in text
    assert "fits with model.gradient_checkpointing=true, trainer.strategy=fsdp2" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape=Qwen9"], "shape must be one of Qwen2.5-7B, Qwen2.5-14B, Llama-3.1-70B, got 'Qwen9'"),
        (["--model.policy=./nowhere"], "model.policy must be a Hugging Face model folder with a config.json"),
        (["--shape=Qwen2.5-7B", "--trainer.strategy=deepspeed"], "trainer.strategy must be auto, ddp, fsdp, fsdp2"),
        (["--shape=Qwen2.5-7B", "--gpus=-1"], "gpus must be positive, got -1"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(capsys, options, message):
    with pytest.raises(SystemExit):
        plan(capsys, *options)
    assert message in capsys.readouterr().err

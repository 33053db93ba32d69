"""What a resumed run takes over, and what it refuses, before anything is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from appo.distributed.checkpoint import resume
from appo.engines import HFEngine
from appo.sft import TinyPolicy, WorldConversations
from tests.small_run import run

OPTIONS = ("--trainer.max_epochs=2", "--rollout.reward=tests.small_run.EvenTokens", "--ckpt_path=last")


class OtherEngine(HFEngine):
    """An engine of another class."""


@pytest.fixture
def begun(small_run, tmp_path) -> Path:
    """A copy of a run of one iteration."""
    return Path(shutil.copytree(small_run, tmp_path / "run", symlinks=True))


@pytest.mark.parametrize(
    ("kept", "rule"),
    [
        (400_000, r"ckpt must be a checkpoint that Lightning wrote, got .*NAMED\.ckpt"),
        (0, r"ckpt must be a checkpoint that Lightning wrote, got .*NAMED\.ckpt"),
        (None, r"ckpt_path=last must find what .*last\.ckpt points to, got no epoch=0\.ckpt"),
    ],
    ids=["cut", "empty", "gone"],
)
@pytest.mark.parametrize("last", [True, False])
def test_half_a_checkpoint_is_refused_before_anything_starts(begun, policy_folder, kept, rule, last):
    file = begun / "checkpoints/epoch=0.ckpt"
    content = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(content[:kept])
    elif not last:
        pytest.skip("a path that names nothing is the trainer's to refuse")
    named = "last" if last else "epoch=0"
    with pytest.raises((ValueError, FileNotFoundError), match=rule.replace("NAMED", named)):
        run("fit", begun, policy_folder, *OPTIONS[:2], f"--ckpt_path={'last' if last else file}")
    assert not (begun / "csv/version_1/metrics.csv").exists()


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("appo_version", r"ckpt_path must be a checkpoint of appo .*, or an earlier version, got one of appo 99\.1"),
        (
            "pytorch-lightning_version",
            r"of lightning .*, or an earlier version, got one of lightning 99\.1",
        ),
    ],
)
def test_a_checkpoint_of_a_later_version_is_refused_before_anything_starts(begun, policy_folder, key, rule):
    file = begun / "checkpoints/epoch=0.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint[key]
    torch.save({**checkpoint, key: "99.1"}, file)
    with pytest.raises(ValueError, match=rule):
        run("fit", begun, policy_folder, *OPTIONS)
    assert not (begun / "csv/version_1/metrics.csv").exists()


def test_weights_of_another_policy_are_refused(begun, tmp_path):
    other = tmp_path / "other"
    TinyPolicy(WorldConversations(), hidden_size=32, num_layers=1, num_heads=2, mlp_size=64).build(other)
    with pytest.raises(ValueError, match=r"weights of the shapes that model\.policy=.*other has, got \[\d+, 64\] for"):
        run("fit", begun, other, *OPTIONS)


def test_the_state_of_another_optimizer_is_refused_in_training_alone(begun, policy_folder):
    other = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1")
    with pytest.raises(ValueError, match=r"model\.optimizer must be AdamW, as in the checkpoint, .* got SGD"):
        run("fit", begun, policy_folder, *OPTIONS, *other)
    run("test", begun, policy_folder, *OPTIONS[1:], *other)


@pytest.mark.parametrize(
    "options",
    [
        ["--model.optimizer.lr=0.01"],
        ["--data.prompts_per_iteration=8", "--data.prompts_per_minibatch=8"],
        ["--seed_everything=7"],
        ["--rollout.scorer=Entropy", "--rollout.advantage=GroupAdvantage", "--model.loss=ClippedLoss"],
        ["--rollout.branching.num_trajectories=8"],
        ["--rollout.reward=tests.small_run.Constant"],
        ["--rollout.limits.max_response_tokens=16"],
        ["--rollout.engine=tests.training.test_resuming.OtherEngine"],
    ],
    ids=lambda options: options[0].removeprefix("--").partition("=")[0],
)
def test_what_else_has_changed_holds_from_the_next_iteration_on(begun, policy_folder, options):
    run("fit", begun, policy_folder, *OPTIONS, *options)
    checkpoint = torch.load(begun / "checkpoints/epoch=1.ckpt", weights_only=True)
    if options[0].startswith("--model.optimizer.lr"):
        assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.01


def test_a_folder_of_shards_is_refused_by_a_strategy_that_does_not_shard(tmp_path):
    with pytest.raises(ValueError, match=r"ckpt_path must be a file with a trainer\.strategy that does not shard, got"):
        resume(SingleDeviceStrategy("cpu"), tmp_path)

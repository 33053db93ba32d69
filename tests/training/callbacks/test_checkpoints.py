"""Checkpoints of every iteration, whoever asks for them."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import contextmanager

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from appo.distributed import comm
from appo.training.callbacks import IterationCheckpoints
from appo.training.callbacks.checkpoints import LastCheckpoint
from tests.small_run import run


def test_a_checkpoint_callback_of_ones_own_saves_iterations_that_train_nothing_too(tmp_path, policy_folder, caplog):
    run(
        "fit", tmp_path, policy_folder, "--ckpt_path=last", "--trainer.max_epochs=2",
        "--rollout.reward=tests.small_run.Constant",
        "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1",
        "--trainer.callbacks.filename={epoch}-all",
        "--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=rollout/reward_mean",
        "--trainer.callbacks.mode=max", "--trainer.callbacks.filename={epoch}-best",
    )  # fmt: skip
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "epoch=0-all.ckpt", "epoch=0-best.ckpt", "epoch=1-all.ckpt", "epoch=1.ckpt", "last.ckpt",
    ]  # fmt: skip
    assert f"ckpt_path=last finds no checkpoint in {folder}: the run begins anew" in caplog.text
    assert "no trajectory of iteration 0 called a tool (search, python)" in caplog.text
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 1


def test_nothing_is_evaluated_in_place_of_a_last_checkpoint_that_is_not_there(tmp_path, policy_folder):
    with pytest.raises(FileNotFoundError, match=r"ckpt_path=last must find a checkpoint in .*/checkpoints, got none"):
        run("test", tmp_path, policy_folder, "--ckpt_path=last")


class Terminated(L.Callback):
    """Tells its own process to end, as a cluster does, at the first batch of an iteration."""

    def __init__(self, times: int = 1, in_epoch: int = 0) -> None:
        self.times = times
        self.in_epoch = in_epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.in_epoch, 0):
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGTERM)


def _terminated(folder, policy_folder, *options: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(
            "fit", folder, policy_folder, "--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens",
            "--trainer.callbacks=tests.training.callbacks.test_checkpoints.Terminated", *options,
        )  # fmt: skip
    assert ended.value.code == 143
    assert not (folder / "policy").exists()


def test_a_run_that_is_told_to_end_keeps_its_iteration_and_goes_on_as_if_nothing_had_been(
    tmp_path, policy_folder, caplog
):
    caplog.set_level(logging.INFO, "appo")
    before = signal.getsignal(signal.SIGTERM)
    _terminated(tmp_path / "told", policy_folder)
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(tmp_path / "told/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert "told to end: the run ends behind this iteration" in caplog.text
    assert "--ckpt_path last" in caplog.messages[-1]
    options = ("--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens")
    run("fit", tmp_path / "told", policy_folder, *options, "--ckpt_path=last")
    run("fit", tmp_path / "whole", policy_folder, *options)
    told, whole = (load_file(tmp_path / name / "policy/model.safetensors") for name in ("told", "whole"))
    assert all(torch.equal(told[name], whole[name]) for name in whole)


def test_a_run_that_is_told_again_ends_at_once(tmp_path, policy_folder):
    _terminated(tmp_path, policy_folder, "--trainer.callbacks.times=2", "--trainer.callbacks.in_epoch=1")
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0


def test_a_run_that_is_told_to_end_in_its_last_iteration_is_done(tmp_path, policy_folder):
    run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.Constant",
        "--trainer.callbacks=tests.training.callbacks.test_checkpoints.Terminated",
    )  # fmt: skip
    assert (tmp_path / "policy/model.safetensors").is_file()


def test_one_that_is_told_when_to_save_is_left_alone():
    own = ModelCheckpoint("elsewhere", save_on_train_epoch_end=False)
    on_validation = ModelCheckpoint(monitor="validation/accuracy")
    trainer = L.Trainer(
        callbacks=[IterationCheckpoints(), own, on_validation], logger=False, max_epochs=3, default_root_dir="run",
        accelerator="cpu", check_val_every_n_epoch=3,
    )  # fmt: skip
    IterationCheckpoints().setup(trainer, L.LightningModule(), "fit")
    assert own._save_on_train_epoch_end is False
    assert own.dirpath.endswith("elsewhere")
    assert on_validation._save_on_train_epoch_end is None
    trainer.check_val_every_n_epoch = 4
    with pytest.raises(ValueError, match=r"check_val_every_n_epoch must not exceed trainer.max_epochs, 3, .* got 4"):
        IterationCheckpoints().setup(trainer, L.LightningModule(), "fit")


def test_a_checkpoint_has_a_phase_of_its_own_so_that_a_lost_rank_is_named(tmp_path, monkeypatch):
    done = []

    @contextmanager
    def phase(name):
        done.append(f"begin {name}")
        yield
        done.append(f"end {name}")

    monkeypatch.setattr(comm, "phase", phase)
    monkeypatch.setattr(ModelCheckpoint, "on_train_epoch_end", lambda *arguments: done.append("write"))
    LastCheckpoint(tmp_path).on_train_epoch_end(None, None)
    assert done == ["begin checkpoint", "write", "end checkpoint"]

"""Checkpoints of every iteration, whoever asks for them."""

from __future__ import annotations

import inspect
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import SingleDeviceStrategy
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from appo.distributed import comm
from appo.training.callbacks import EndOnSignal, IterationCheckpoints, checkpoints, termination
from appo.training.callbacks.checkpoints import LastCheckpoint
from appo.training.callbacks.termination import requeue_if_asked
from tests.leftovers import children
from tests.slurm_job import slurm_job
from tests.small_run import newest, run


def test_a_checkpoint_callback_of_ones_own_saves_iterations_that_train_nothing_too(
    tmp_path, policy_folder, caplog, monkeypatch
):
    monkeypatch.setattr(checkpoints, "_LEAST_S", 0.0)
    monkeypatch.setattr(checkpoints, "_LARGE_SHARE", 0.0)
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
    assert caplog.text.count("writing checkpoints took ") == 1
    assert "no trajectory of iteration 0 called a tool (search, python)" in caplog.text
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 1


def test_nothing_is_evaluated_in_place_of_a_last_checkpoint_that_is_not_there(tmp_path, policy_folder):
    with pytest.raises(FileNotFoundError, match=r"ckpt_path=last must find a checkpoint in .*/checkpoints, got none"):
        run("test", tmp_path, policy_folder, "--ckpt_path=last")


class Told(L.Callback):
    """Sends its own process a signal, as a cluster does, at the first batch of an iteration, and where that ends it."""

    def __init__(self, number: int = signal.SIGTERM.value, times: int = 1, in_epoch: int = 0) -> None:
        self.number = number
        self.times = times
        self.in_epoch = in_epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.in_epoch, 0):
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def on_exception(self, trainer, pl_module, exception) -> None:
        if self.number == signal.SIGINT:
            os.kill(os.getpid(), self.number)


def _ended(folder, policy_folder, *options: str, status: int = 143) -> None:
    with pytest.raises(SystemExit) as ended:
        run(
            "fit", folder, policy_folder, "--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens",
            "--trainer.callbacks=tests.training.callbacks.test_checkpoints.Told", *options,
        )  # fmt: skip
    assert ended.value.code == status
    assert not (folder / "policy").exists()


def test_a_run_that_is_told_to_end_keeps_its_iteration_and_goes_on_as_if_nothing_had_been(
    tmp_path, policy_folder, caplog
):
    caplog.set_level(logging.INFO, "appo")
    before = signal.getsignal(signal.SIGTERM)
    # Whatever its turn is: an end is saved.
    rarely = ("--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_iterations=5")
    _ended(tmp_path / "told", policy_folder, *rarely)
    assert signal.getsignal(signal.SIGTERM) == before
    assert torch.load(tmp_path / "told/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert "told to end: the run ends behind this iteration" in caplog.text
    assert "--ckpt_path last" in caplog.messages[-1]
    options = ("--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens")
    run("fit", tmp_path / "told", policy_folder, *options, *rarely, "--ckpt_path=last")
    assert [int(row["epoch"]) for row in newest(tmp_path / "told")] == [1, 2]
    run("fit", tmp_path / "whole", policy_folder, *options)
    told, whole = (load_file(tmp_path / name / "policy/model.safetensors") for name in ("told", "whole"))
    assert all(torch.equal(told[name], whole[name]) for name in whole)


def test_a_run_that_is_told_again_ends_at_once(tmp_path, policy_folder):
    _ended(tmp_path, policy_folder, "--trainer.callbacks.times=2", "--trainer.callbacks.in_epoch=1")
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0


@pytest.fixture
def hears_interrupts():
    """A shell lets what it starts in the background ignore them."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("hears_interrupts")
def test_a_second_interrupt_does_not_cut_off_the_end_that_the_first_one_began(tmp_path, policy_folder, caplog):
    before = children()
    _ended(
        tmp_path, policy_folder, f"--trainer.callbacks.number={signal.SIGINT.value}", "--trainer.callbacks.in_epoch=1",
        status=130,
    )  # fmt: skip
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert "cut off in iteration 1 by KeyboardInterrupt; without the cause it goes on with" in caplog.messages[-1]
    assert children() <= before


def test_an_end_that_does_not_come_is_cut_off_by_itself_and_says_where_it_stands():
    hangs = (
        "import signal, threading\n"
        "from appo.training.callbacks import termination\n"
        "def hang(): threading.Event().wait()\n"
        "termination._END_S = 0.5\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with termination.ends_when_interrupted():\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        "    except KeyboardInterrupt: hang()\n"
    )
    ended = subprocess.run([sys.executable, "-c", hangs], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "in hang" in ended.stderr


def test_an_end_that_does_not_come_is_cut_off_by_a_later_interrupt(monkeypatch, caplog):
    previous, codes = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(termination.os, "_exit", codes.append)
    try:
        termination.EndOnSignal().on_exception(None, None, KeyboardInterrupt())
        signal.raise_signal(signal.SIGINT)
        assert codes == []
        assert "the run is ending; interrupted again in 10 s it is cut off" in caplog.text
        monkeypatch.setattr(termination, "_PATIENCE_S", 0.0)
        signal.raise_signal(signal.SIGINT)
        assert codes == [130]
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("hears_interrupts")
def test_an_interrupt_waits_until_a_logger_has_given_back_its_lock(tmp_path):
    writer = SummaryWriter(tmp_path)

    def interrupt(frame, event, _):
        """As it enters what releases the lock of the writer's queue."""
        if event == "call" and frame.f_code is threading.Condition.__exit__.__code__ and frame.f_back.f_code is put:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    def write():
        sys.setprofile(interrupt)
        writer.add_scalar("reward", 1.0)
        while True:
            pass

    put = queue.Queue.put.__code__
    with pytest.raises(KeyboardInterrupt), termination.ends_when_interrupted():
        write()
    close = threading.Thread(target=writer.close, daemon=True)
    close.start()
    close.join(10.0)
    assert not close.is_alive()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The environment of a job, and the file of what `scontrol` is asked."""
    for name, value in slurm_job(tmp_path / "bin").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "bin/asked"


def test_a_job_whose_time_is_up_ends_behind_its_iteration_and_goes_on_when_slurm_starts_it_again(
    slurm, tmp_path, policy_folder, monkeypatch, caplog
):
    folder = tmp_path / "run"
    _ended(folder, policy_folder, f"--trainer.callbacks.number={signal.SIGUSR1.value}")
    assert slurm.read_text() == "requeue 42\n"
    # Behind the iteration alone: what Lightning would have saved within it is not there.
    assert not list(folder.glob("hpc_ckpt*"))
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run("fit", folder, policy_folder, "--trainer.max_epochs=2", "--rollout.reward=tests.small_run.EvenTokens")
    assert "SLURM_RESTART_COUNT=1: the run goes on, as by --ckpt_path last" in caplog.text
    assert [int(row["epoch"]) for row in newest(folder)] == [1]


def test_a_job_that_slurm_does_not_start_again_says_so(slurm, tmp_path, policy_folder, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    trainer = L.Trainer(callbacks=[EndOnSignal()], logger=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer.callbacks[0].asks_to_requeue = True
    requeue_if_asked(trainer)
    assert slurm.read_text() == "requeue 6_1\n"
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    requeue_if_asked(trainer)
    assert "scontrol requeue 7 has failed (no such job): start the job again yourself" in caplog.text


def test_a_run_that_is_told_to_end_in_its_last_iteration_is_done(tmp_path, policy_folder):
    run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.Constant",
        "--trainer.callbacks=tests.training.callbacks.test_checkpoints.Told",
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


def test_a_run_that_is_killed_while_its_last_checkpoint_is_renewed_has_one(tmp_path, monkeypatch):
    trainer = L.Trainer(logger=False, accelerator="cpu", default_root_dir=tmp_path)
    for name in ("first.ckpt", "second.ckpt"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "last.ckpt"
    # As Lightning calls it.
    theirs, ours = (inspect.signature(each._link_checkpoint) for each in (ModelCheckpoint, LastCheckpoint))
    assert [*theirs.parameters] == [*ours.parameters]
    LastCheckpoint._link_checkpoint(trainer, str(tmp_path / "first.ckpt"), str(link))
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            LastCheckpoint._link_checkpoint(trainer, str(tmp_path / "second.ckpt"), str(link))
        assert link.read_text() == "first.ckpt"
    LastCheckpoint._link_checkpoint(trainer, str(tmp_path / "second.ckpt"), str(link))
    assert link.read_text() == "second.ckpt"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.ckpt", "last.ckpt", "second.ckpt"]


def test_a_checkpoint_is_removed_when_another_is_the_last_one(tmp_path, monkeypatch):
    last, pointed_to, remove = tmp_path / "last.ckpt", [], SingleDeviceStrategy.remove_checkpoint

    def watched(strategy, path):
        remove(strategy, path)
        pointed_to.append(last.exists() and last.resolve().name)

    monkeypatch.setattr(SingleDeviceStrategy, "remove_checkpoint", watched)
    checkpoint = LastCheckpoint()
    checkpoint.dirpath = str(tmp_path)
    L.Trainer(
        max_epochs=3, limit_train_batches=1, limit_val_batches=0, callbacks=[checkpoint], accelerator="cpu", devices=1,
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(BoringModel())  # fmt: skip
    assert pointed_to == ["epoch=1.ckpt", "epoch=2.ckpt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=2.ckpt", "last.ckpt"]


def test_a_checkpoint_has_a_phase_of_its_own_so_that_a_lost_rank_is_named(tmp_path, monkeypatch):
    done = []

    @contextmanager
    def phase(name):
        done.append(f"begin {name}")
        yield
        done.append(f"end {name}")

    monkeypatch.setattr(comm, "phase", phase)
    monkeypatch.setattr(ModelCheckpoint, "on_train_epoch_end", lambda *arguments: done.append("write"))
    LastCheckpoint().on_train_epoch_end(L.Trainer(logger=False, barebones=True), None)
    assert done == ["begin checkpoint", "write", "end checkpoint"]


@pytest.mark.parametrize(("stops_in", "written"), [(None, [2, 5, 6]), (4, [2, 4])])
def test_a_checkpoint_is_written_when_it_is_its_turn_and_at_the_end(monkeypatch, stops_in, written):
    trainer, found = L.Trainer(logger=False, barebones=True, max_epochs=7), []
    monkeypatch.setattr(
        ModelCheckpoint, "on_train_epoch_end", lambda self, trainer, _: found.append(trainer.current_epoch)
    )
    for epoch in range(7 if stops_in is None else stops_in + 1):
        trainer.fit_loop.epoch_progress.current.completed = epoch
        trainer.fit_loop.epoch_progress.current.processed = epoch
        trainer.should_stop = epoch == stops_in
        LastCheckpoint(every_n_iterations=3).on_train_epoch_end(trainer, None)
    assert found == written


def test_a_turn_that_never_comes_is_refused():
    with pytest.raises(ValueError, match="every_n_iterations of LastCheckpoint must be positive, got 0"):
        LastCheckpoint(0)

"""Whole runs that sample the next iteration while the current one trains, against runs that do one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from appo.engines import HFEngine
from appo.monitoring.trajectory_files import read_trajectories
from appo.training.checks import can_overlap
from tests.distributed.whole_runs import TRAINED, difference, fit, iterations
from tests.rollouts.async_engines import AsynchronousEngine, meet, sampling_threads
from tests.small_run import run
from tests.training.callbacks.test_fit import history, weights

LAGGING = ("--rollout.sampling.lag=1", "--rollout.reward=tests.small_run.EvenTokens", "--trainer.max_epochs=3")
ENGINE = "--rollout.engine=tests.rollouts.async_engines.AsynchronousEngine"
ASIDE = (ENGINE, *LAGGING)
HELD = (
    "--rollout.engine=tests.rollouts.async_engines.HeldEngine",
    "--model.loss=tests.rollouts.async_engines.MeetingLoss",
    "--rollout.branching.when=iteration",
    *LAGGING,
)


def records(folder: Path) -> list[list[dict[str, Any]]]:
    """The trajectories of every iteration."""
    return [list(read_trajectories(path)) for path in sorted(folder.glob("trajectories/iteration_*"))]


def assert_same_run(folder: Path, other: Path, *, first: int = 0) -> None:
    """The same tokens, sampled by the same versions, and the same weights; `other` began with iteration `first`."""
    for ours, theirs in zip(records(folder)[first:], records(other), strict=True):
        for name in ("token_ids", "policy_versions", "parent_id", "reward"):
            assert [record[name] for record in ours] == [record[name] for record in theirs]
    # What is in the engine at the same time decides how sums are rounded.
    expected = weights(other / "policy")
    for name, tensor in weights(folder / "policy").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--rollout.branching.when=iteration",),
        ("--rollout.branching.when=minibatch", "--trainer.check_val_every_n_epoch=2"),
        ("--rollout.sampling.replacement_rounds=2", "--rollout.reward=tests.small_run.EveryOtherFlat"),
    ],
)
def test_who_samples_what_is_the_same(tmp_path, policy_folder, options):
    overlapped = run("fit", tmp_path / "overlapped", policy_folder, *ASIDE, *options)
    one_by_one = run(
        "fit", tmp_path / "one_by_one", policy_folder, *ASIDE, *options, "--rollout.sampling.overlap=false"
    )
    assert_same_run(overlapped, one_by_one)
    ours, theirs = ([row for row in history(each) if "train/loss" in row] for each in (overlapped, one_by_one))
    for name in ("generated_tokens", "generated_tokens_total", "branches_made", "prompts_replaced"):
        assert [row[f"rollout/{name}"] for row in ours] == [row[f"rollout/{name}"] for row in theirs]
    # The last iteration has none to sample for.
    assert ["rollout/waiting_s" in row for row in ours] == [True, True, False]
    assert not any("rollout/waiting_s" in row for row in theirs)
    assert not sampling_threads()


@pytest.mark.slow
def test_the_policy_is_updated_while_the_next_trajectories_are_sampled(tmp_path, policy_folder):
    meeting = meet()
    overlapped = run("fit", tmp_path / "overlapped", policy_folder, *HELD)
    # All 16 were in the engine, finished or not, when the first update began: it would not have let them go before.
    assert meeting.num_in_flight == 16
    meet().updating.set()
    one_by_one = run("fit", tmp_path / "one_by_one", policy_folder, *HELD, "--rollout.sampling.overlap=false")
    assert_same_run(overlapped, one_by_one)


def test_weights_wait_for_what_is_on_its_way(tmp_path, policy_folder):
    meet(is_late=True)
    run("fit", tmp_path, policy_folder, *HELD, "--trainer.check_val_every_n_epoch=1")
    rows = [row for row in history(tmp_path) if "train/loss" in row]
    assert rows[0]["rollout/waiting_s"] > 0
    assert len([row for row in history(tmp_path) if "validation/accuracy" in row]) == 3


def test_a_failure_of_sampling_ends_the_run_in_the_middle_of_an_update(tmp_path, policy_folder):
    meeting = meet(breaks=True)
    with pytest.raises(RuntimeError, match="the engine broke") as raised:
        run("fit", tmp_path, policy_folder, *HELD, "--model.max_tokens_per_microbatch=1")
    # Of the 8 micro-batches of the update, and with a traceback that leads to the place.
    assert meeting.losses == 1
    assert {"on_before_backward", "_work", "step"} <= {entry.name for entry in raised.traceback}
    assert not sampling_threads()


def test_a_user_who_interrupts_an_update_stops_the_sampling_too(tmp_path, policy_folder):
    meet(interrupts=True)
    with pytest.raises(SystemExit):
        run("fit", tmp_path, policy_folder, *HELD)
    assert not sampling_threads()
    assert not (tmp_path / "policy").exists()


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path, policy_folder):
    whole = run("fit", tmp_path / "whole", policy_folder, *ASIDE)
    stopped = tmp_path / "stopped"
    run("fit", stopped, policy_folder, *ASIDE, "--rollout.stop_after_tokens=1")
    assert len(history(stopped)) == 1
    run("fit", stopped, policy_folder, *ASIDE, "--ckpt_path=last")
    assert_same_run(whole, stopped)
    assert [row["rollout/generated_tokens_total"] for row in history(stopped)] == [
        row["rollout/generated_tokens_total"] for row in history(whole)[1:]
    ]


def test_a_checkpoint_in_the_middle_of_an_iteration_waits_for_what_was_begun(tmp_path, policy_folder):
    meet()
    run(
        "fit", tmp_path, policy_folder, *HELD, "--trainer.max_steps=1",
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}",
        "--trainer.callbacks.every_n_train_steps=1", "--trainer.callbacks.filename=first",
    )  # fmt: skip
    checkpoint = torch.load(tmp_path / "first.ckpt", weights_only=True)
    assert len(checkpoint["callbacks"]["RolloutCallback"]["pending"]) == 16


@pytest.mark.distributed
def test_two_processes_sample_ahead_as_one_does(tmp_path, policy_folder):
    # What is in the engine at the same time decides how log-probs are rounded, and z-scores of the small gains of such
    # a run would let that decide between two points; entropies are the trainer's.
    options = (*TRAINED, ENGINE, "--rollout.scorer=Entropy")
    for strategy, processes in (("ddp", 2), ("auto", 1)):
        done = fit(tmp_path / strategy, policy_folder, strategy, processes, *options)
        assert done.returncode == 0, done.stderr[-3000:]
    assert difference(tmp_path / "ddp/policy", tmp_path / "auto/policy") <= 1e-5
    assert "rollout/waiting_s" in iterations(tmp_path / "ddp")[0]


def test_engines_that_need_the_trainers_devices_are_told_apart():
    assert can_overlap(None, 1, AsynchronousEngine())
    assert not can_overlap(False, 1, AsynchronousEngine())
    assert not can_overlap(None, 0, AsynchronousEngine())
    assert not can_overlap(None, 1, HFEngine())
    with pytest.raises(ValueError, match=r"such as VLLMServerEngine, with rollout.sampling.overlap=true, got HFEngine"):
        can_overlap(True, 1, HFEngine())
    with pytest.raises(ValueError, match=r"rollout.sampling.lag must be 1 with rollout.sampling.overlap=true, got 0"):
        can_overlap(True, 0, AsynchronousEngine())

"""Trajectories in the tables of loggers, by the loggers themselves where they are installed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from appo.core.trajectory import RewardResult
from appo.training.callbacks.trajectory_table import COLUMNS, log_trajectories
from tests.rewards.responses import trajectory

REWARDED = [
    (trajectory(f"answer {i}", num_sampled=i + 1), RewardResult(reward)) for i, reward in enumerate([1, 0, 3, 2])
]


def log(rewarded, number, *loggers):
    log_trajectories(SimpleNamespace(loggers=loggers, current_epoch=7, global_step=21), rewarded, number)


@pytest.mark.parametrize(("number", "rewards"), [(1, [3]), (3, [3, 0, 2]), (9, [3, 0, 2, 1])])
def test_the_best_and_the_worst_come_by_turns(caplog, number, rewards):
    caplog.set_level(logging.INFO, "appo")
    log(REWARDED, number)
    assert [message.partition(":")[0] for message in caplog.messages] == [f"iteration 7, reward {r}" for r in rewards]


def test_what_is_not_public_is_left_out(caplog):
    caplog.set_level(logging.INFO, "appo")
    one, result = REWARDED[0]
    log([(replace(one, prompt=replace(one.prompt, is_public=False)), result)], 4)
    assert caplog.messages == []


def test_weights_and_biases_has_a_table_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    tables = []
    monkeypatch.setattr(logger.experiment, "log", lambda metrics, **_: tables.append(metrics["trajectories"]))
    log(REWARDED, 2, logger)
    wandb.finish()
    (table,) = tables
    assert (table.columns, [row[1] for row in table.data]) == (list(COLUMNS), [3, 0])
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_mlflow_has_a_file_of_each_iteration(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("pandas")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its database needs a package more
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns")
    log(REWARDED, 2, logger)
    (path,) = tmp_path.glob("mlruns/*/*/artifacts/trajectories/iteration_00007.json")
    table = json.loads(path.read_text())
    assert (table["columns"], [row[1] for row in table["data"]]) == (list(COLUMNS), [3, 0])

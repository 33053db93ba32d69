"""Every option of Lightning's trainer does in `appo fit` what Lightning says, or is refused before the run begins."""

from __future__ import annotations

import csv
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from appo.commands import cli
from appo.monitoring.trajectory_files import read_trajectories
from tests.small_run import metrics, run
from tests.training.trainer_watch import Watch

TABLE = Path(__file__).parents[2] / "docs/trainer_options.md"
OF_DEVICES = {"accelerator", "devices", "num_nodes", "strategy"}
TESTED: set[str] = set()

SMALL = (
    "--rollout.reward=tests.training.trainer_watch.MeanToken",
    "--data.prompts_per_iteration=2",
    "--data.prompts_per_minibatch=1",
    "--data.prompts_per_evaluation_batch=2",
    "--rollout.branching.num_trajectories=4",
    "--rollout.branching.num_roots=2",
    "--rollout.limits.max_response_tokens=8",
    "--rollout.tools=[]",
    "--trainer.callbacks+=tests.training.trainer_watch.Watch",
)
"""Two steps an iteration, and three batches of two questions a validation."""
SWITCHES = ("anomalies", "deterministic", "warns", "benchmark")
TWO = ("--trainer.max_epochs=2",)
VALIDATED = ("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1")


def of(*options: str) -> Callable[[Any], Any]:
    """Marks a test as that of some options."""
    TESTED.update(options)
    return lambda test: test


@pytest.fixture
def fit(tmp_path, policy_folder):
    """Runs a small training with some options; returns its folder."""
    return lambda *options: run("fit", tmp_path, policy_folder, *SMALL, *options)


def iterations(folder: Path) -> list[tuple[int, int]]:
    """Number and last step of every iteration that the last of the runs in a folder trained."""
    newest = max(folder.glob("csv/version_*"))
    with (newest / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [(int(row["epoch"]), int(row["step"])) for row in rows if row.get("rollout/reward_mean")]


def validations(folder: Path) -> list[int]:
    """Steps at whose end there was a validation."""
    return [int(row["step"]) for row in metrics(folder) if row.get("validation/accuracy")]


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "trajectories").glob("*")}


def test_the_table_has_every_option_and_every_row_a_test():
    rows = set(re.findall(r"^\| `(\w+)`", TABLE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert rows == inspect.signature(L.Trainer).parameters.keys() - OF_DEVICES
    assert rows == TESTED


REFUSED = {
    "gradient_clip_val": (1.0, "model.max_grad_norm"),
    "gradient_clip_algorithm": ("norm", "model.max_grad_norm"),
    "accumulate_grad_batches": (2, "model.max_tokens_per_microbatch"),
    "limit_train_batches": (1, "data.prompts_per_iteration"),
    "overfit_batches": (1, "data.prompts_per_iteration"),
    "barebones": (True, "trainer.logger"),
}


@of(*REFUSED)
@pytest.mark.parametrize("option", REFUSED)
def test_an_option_with_another_place_is_refused_with_it_in_a_line(fit, tmp_path, capsys, option):
    value, place = REFUSED[option]
    with pytest.raises(SystemExit) as ended:
        fit(*TWO, f"--trainer.{option}={value}")
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: trainer.{option} must be left out, got {value}")
    assert place in line
    assert not any(tmp_path.iterdir())


@of("precision")
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_a_precision_in_which_log_probs_would_be_rounded_is_refused(fit, capsys, precision):
    with pytest.raises(SystemExit):
        fit(*TWO, f"--trainer.precision={precision}")
    assert f"trainer.precision must be 32-true or bf16-mixed, got {precision}" in capsys.readouterr().err


@of("callbacks")
@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        ("GradientAccumulationScheduler --trainer.callbacks.scheduling={0:_2}", "which model.max_tokens_per_microb"),
        ("BatchSizeFinder", "`appo plan` says what fits"),
        ("LearningRateFinder", "set model.optimizer.lr"),
        ("EMAWeightAveraging", "average weights, which the engine that samples would not have"),
    ],
)
def test_a_callback_that_needs_lightnings_own_steps_is_refused(fit, capsys, callback, reason):
    with pytest.raises(SystemExit):
        fit(*TWO, *(part.replace("_2", " 2") for part in f"--trainer.callbacks+={callback}".split()))
    assert reason in capsys.readouterr().err


def test_a_callback_of_the_users_own_runs_and_a_progress_bar_takes_the_place_of_ours(fit, capsys):
    fit(*TWO, "--trainer.callbacks+=TQDMProgressBar", "--trainer.enable_progress_bar=true")
    assert Watch.seen["steps"] == 4
    assert "Epoch 1" in capsys.readouterr().out
    fit(*TWO, "--trainer.enable_progress_bar=true")
    assert "iterations: 100%" in capsys.readouterr().err


@of("max_epochs", "max_steps")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("max_epochs=2",), [(0, 1), (1, 3)]),
        (("max_epochs=2", "max_steps=1"), [(0, 0)]),
        (("max_epochs=-1", "max_steps=3"), [(0, 1), (1, 2)]),
    ],
)
def test_a_run_ends_after_so_many_iterations_or_steps(fit, options, expected):
    folder = fit(*(f"--trainer.{option}" for option in options))
    assert iterations(folder) == expected
    assert (folder / "policy/config.json").is_file()


@pytest.mark.parametrize(("first", "lag"), [(1, 0), (2, 0), (3, 1)])
def test_a_run_that_ended_within_an_iteration_goes_on_with_the_next_one(fit, first, lag):
    options = ("--trainer.max_epochs=5", f"--rollout.sampling.lag={lag}")
    folder = fit(*options, f"--trainer.max_steps={first}")
    done = (first + 1) // 2
    fit(*options, f"--trainer.max_steps={first + 4}", "--ckpt_path=last")
    assert iterations(folder) == [(done, first + 1), (done + 1, first + 3)]


@of("min_epochs", "min_steps")
@pytest.mark.parametrize(
    ("option", "expected"), [("min_epochs=2", [(0, 1), (1, 3)]), ("min_steps=3", [(0, 1), (1, 2)])]
)
def test_a_run_does_not_end_earlier(fit, option, expected):
    folder = fit("--trainer.max_epochs=4", "--rollout.stop_after_tokens=1", f"--trainer.{option}")
    assert iterations(folder) == expected


@of("max_time")
def test_a_run_ends_when_its_time_is_over(fit):
    folder = fit("--trainer.max_epochs=1000", "--trainer.max_time=00:00:00:01")
    assert 0 < len(iterations(folder)) < 500
    assert (folder / "checkpoints/last.ckpt").is_file()


@of("limit_val_batches")
@pytest.mark.parametrize(("limit", "num_batches"), [("2", 2), ("1", 1), ("1.0", 3), ("0.67", 2)])
def test_so_many_batches_are_validated_and_their_trajectories_are_kept(fit, limit, num_batches):
    folder = fit(*VALIDATED, f"--trainer.limit_val_batches={limit}")
    assert Watch.seen["validated"] == num_batches
    assert len(list(read_trajectories(folder / "trajectories/validation_00000.jsonl.zst"))) == 2 * num_batches
    assert files(folder) == {"iteration_00000.jsonl.zst", "validation_00000.jsonl.zst"}


def test_nothing_is_validated_where_the_limit_is_none(fit):
    folder = fit(*VALIDATED, "--trainer.limit_val_batches=0")
    assert validations(folder) == []


@of("limit_test_batches", "limit_predict_batches")
@pytest.mark.parametrize("command", ["test", "predict"])
def test_so_many_batches_are_tested_and_predicted(tmp_path, policy_folder, command):
    run(command, tmp_path, policy_folder, *SMALL, f"--trainer.limit_{command}_batches=2")
    assert len(list(read_trajectories(tmp_path / f"trajectories/{command}_00000.jsonl.zst"))) == 4


@of("check_val_every_n_epoch", "val_check_interval")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("check_val_every_n_epoch=2",), [3]),
        (("check_val_every_n_epoch=1", "val_check_interval=1"), [0, 1, 2, 3]),
        (("check_val_every_n_epoch=1", "val_check_interval=0.5"), [0, 1, 2, 3]),
        (("check_val_every_n_epoch=1", "val_check_interval=1.0"), [1, 3]),
        (("check_val_every_n_epoch=null", "val_check_interval=3"), [2]),
    ],
)
def test_there_is_a_validation_every_so_often_and_none_overwrites_another(fit, options, expected):
    folder = fit(*TWO, *(f"--trainer.{option}" for option in options))
    assert validations(folder) == expected
    assert len([name for name in files(folder) if name.startswith("validation")]) == len(expected)


@of("num_sanity_val_steps")
def test_a_few_batches_are_validated_before_the_training_and_leave_nothing(fit):
    folder = fit("--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=2")
    assert Watch.seen["sanity"] == 2
    assert files(folder) == {"iteration_00000.jsonl.zst"}


@of("fast_dev_run")
def test_a_fast_run_takes_a_step_validates_a_batch_and_leaves_nothing(fit, tmp_path):
    fit("--trainer.fast_dev_run=true")
    assert (Watch.seen["steps"], Watch.seen["validated"]) == (1, 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@of("logger")
def test_without_a_logger_there_are_no_metrics_and_the_config_is_kept(fit):
    folder = fit(*TWO, "--trainer.logger=false")
    assert not list(folder.rglob("metrics.csv"))
    assert (folder / "config.yaml").is_file()
    assert len(files(folder)) == 2


def test_beside_a_logger_of_the_users_own_the_metrics_stay_and_trajectories_are_shown(fit, tmp_path, caplog):
    caplog.set_level("INFO", logger="appo.training.callbacks.trajectory_table")
    own = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path), "name": "own"}}
    folder = fit(*TWO, f"--trainer.logger={json.dumps([own])}", "--rollout.log_trajectories=3")
    assert len(iterations(folder)) == 2
    assert not (folder / "tensorboard").exists()
    told = [record.message[:20] for record in caplog.records if record.name.endswith("trajectory_table")]
    assert told == 3 * ["iteration 0, reward "] + 3 * ["iteration 1, reward "]
    events = EventAccumulator(str(tmp_path / "own/version_0"), {"tensors": 0}).Reload()
    tables = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("trajectories/text_summary")]
    assert [table.count("    question: ") for table in tables] == [3, 3]


@of("enable_checkpointing")
def test_without_checkpoints_the_policy_is_left_alone(fit):
    folder = fit(*TWO, "--trainer.enable_checkpointing=false")
    assert not list(folder.rglob("*.ckpt"))
    assert (folder / "policy/config.json").is_file()


@of("enable_progress_bar", "enable_model_summary")
@pytest.mark.parametrize("shown", [True, False])
def test_progress_and_summary_are_shown_where_they_are_wanted(fit, caplog, capsys, shown):
    fit(*TWO, f"--trainer.enable_progress_bar={shown}", f"--trainer.enable_model_summary={shown}")
    printed = capsys.readouterr()
    assert ("iterations:" in printed.err) == shown
    assert ("Trainable params" in printed.out + caplog.text) == shown


@of("log_every_n_steps")
def test_an_iteration_is_logged_at_its_end_whatever_steps_are_to_be_logged(fit):
    folder = fit(*TWO, "--trainer.log_every_n_steps=50")
    assert iterations(folder) == [(0, 1), (1, 3)]


@of("profiler")
def test_a_profiler_times_the_phases_of_sampling_too(fit, tmp_path):
    fit(
        *TWO, "--trainer.profiler=SimpleProfiler", f"--trainer.profiler.dirpath={tmp_path}",
        "--trainer.profiler.filename=times",
    )  # fmt: skip
    times = (tmp_path / "fit-times.txt").read_text(encoding="utf-8")
    assert "[rollout]sampling" in times


@of("detect_anomaly", "deterministic", "benchmark")
def test_switches_of_torch_are_on_where_steps_are_taken(fit):
    one = ("--trainer.max_epochs=1",)
    fit(*one)
    assert {name: Watch.seen[name] for name in SWITCHES} == dict.fromkeys(SWITCHES, False)
    options = ("--trainer.detect_anomaly=true", "--trainer.deterministic=warn", "--trainer.benchmark=true")
    try:
        fit(*one, *options)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    assert {name: Watch.seen[name] for name in SWITCHES} == dict.fromkeys(SWITCHES, True)


@of("inference_mode")
@pytest.mark.parametrize("switch", [True, False])
def test_a_policy_is_validated_in_inference_mode_unless_that_is_off(tmp_path, policy_folder, switch):
    run("validate", tmp_path, policy_folder, *SMALL, f"--trainer.inference_mode={switch}")
    assert Watch.seen["inference"] == switch


@of("plugins")
def test_checkpoints_may_be_written_beside_the_training(fit):
    folder = fit(*TWO, "--trainer.plugins=lightning.pytorch.plugins.io.AsyncCheckpointIO")
    fit("--trainer.max_epochs=3", "--ckpt_path=last")
    assert iterations(folder) == [(2, 5)]


@of("default_root_dir")
def test_everything_lies_in_one_folder(fit, tmp_path):
    folder = fit(*VALIDATED)
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "checkpoints", "csv", "policy", "tensorboard", "trajectories",
    }  # fmt: skip


@of("reload_dataloaders_every_n_epochs", "use_distributed_sampler", "sync_batchnorm", "model_registry")
def test_what_has_nothing_to_do_here_changes_nothing(fit, tmp_path, policy_folder):
    folder = fit(
        *TWO, "--trainer.reload_dataloaders_every_n_epochs=1", "--trainer.use_distributed_sampler=false",
        "--trainer.sync_batchnorm=true", "--trainer.model_registry=a",
    )  # fmt: skip
    plain = run("fit", tmp_path / "plain", policy_folder, *SMALL, *TWO)
    rewards = [[row["rollout/reward_mean"] for row in metrics(run_folder)] for run_folder in (folder, plain)]
    assert len(rewards[0]) == 2
    assert rewards[0] == rewards[1]


@of("enable_autolog_hparams")
def test_hyperparameters_are_logged_only_where_a_module_saves_them(fit):
    assert iterations(fit(*TWO, "--trainer.enable_autolog_hparams=false")) == [(0, 1), (1, 3)]


@pytest.mark.parametrize("option", ["fast_dev_run=true", "barebones=true"])
def test_supervised_training_has_lightnings_own_quick_runs(tmp_path, policy_folder, option):
    conversations = tmp_path / "conversations.jsonl"
    turns = [{"role": "user", "content": "What is 2+3?"}, {"role": "assistant", "content": "It is 5."}]
    conversations.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    run_folder = tmp_path / "run"
    cli.run(
        [
            "sft", f"--model.policy={policy_folder}", f"--model.save_to={run_folder / 'policy'}",
            "--data.source=FileConversations", f"--data.source.train={conversations}", "--trainer.max_epochs=1",
            f"--trainer.default_root_dir={run_folder}", "--trainer.accelerator=cpu", f"--trainer.{option}",
        ]
    )  # fmt: skip
    left = {path.name for path in run_folder.rglob("*") if path.is_file()}
    assert ("config.json" in left) == (option == "barebones=true")
    assert not {name for name in left if name.endswith((".ckpt", ".csv"))}

"""Where the time of an iteration went: in the log, and in the reports of Lightning's profilers."""

from __future__ import annotations

import pytest

from tests.small_run import run
from tests.training.callbacks.test_fit import history

PHASES = ("weights", "sampling", "tools", "log_probs", "scoring", "branching", "rewards", "advantages", "update")


def test_the_phases_of_an_iteration_add_up_to_it(small_run):
    (row,) = (row for row in history(small_run) if "train/loss" in row)
    seconds = {name: row[f"rollout/{name}_s"] for name in (*PHASES, "writing", "other")}
    assert sum(seconds.values()) == pytest.approx(row["rollout/iteration_s"])
    assert all(value >= 0 for value in seconds.values())
    # Of an iteration of some tenths of a second; a phase that is forgotten is more than that.
    assert seconds["other"] < 0.5 * row["rollout/iteration_s"]
    assert row["rollout/trainer_idle"] == pytest.approx(
        sum(seconds[name] for name in ("sampling", "branching", "tools")) / row["rollout/iteration_s"]
    )
    # The engine's share is that of the waiting for it, but for what the loop does around it.
    assert row["rollout/engine_idle"] == pytest.approx(1 - row["rollout/trainer_idle"], abs=0.1)


def test_training_is_counted_in_tokens_and_operations(small_run):
    (row,) = (row for row in history(small_run) if "train/loss" in row)
    assert row["train/tokens_per_s"] > 0
    assert row["train/tflops_per_s"] > 0
    assert "train/mfu" not in row  # of a CPU


@pytest.mark.slow
@pytest.mark.parametrize("profiler", ["SimpleProfiler", "AdvancedProfiler", "PyTorchProfiler"])
def test_profilers_name_the_phases(tmp_path, policy_folder, profiler):
    run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens",
        f"--trainer.profiler=lightning.pytorch.profilers.{profiler}", f"--trainer.profiler.dirpath={tmp_path}",
        "--trainer.profiler.filename=profile",
    )  # fmt: skip
    report = (tmp_path / "fit-profile.txt").read_text()
    # PyTorch's records the steps that its schedule says, and prints what took longest.
    phases = ("weights", "branching", "update") if profiler == "PyTorchProfiler" else PHASES
    assert [phase for phase in phases if f"[rollout]{phase}" not in report and phase != "tools"] == []

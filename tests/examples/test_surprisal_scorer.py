"""The example package is installed as a user would install it, and trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_run import CONFIG, SMALL, metrics

PACKAGE = Path(__file__).parents[2] / "examples/surprisal_scorer"


@pytest.mark.slow
def test_a_scorer_of_another_package_is_selected_by_its_bare_name_and_trains(tmp_path, policy_folder):
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(site), str(PACKAGE)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    command = [
        sys.executable, "-m", "appo", "fit", "--config", CONFIG, *SMALL, "--rollout.scorer=ExcessSurprisal",
        "--rollout.scorer.floor=0.5", "--rollout.reward=AnswerReward", "--rollout.branching.parents=any",
        "--trainer.max_epochs=1", f"--model.policy={policy_folder}", f"--trainer.default_root_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = (row for row in metrics(tmp_path / "run") if row["rollout/reward_mean"])
    assert float(row["rollout/branches_made"]) > 0
    assert row["rollout/score_surprisal_mean"]

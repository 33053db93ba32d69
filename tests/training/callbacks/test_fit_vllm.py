"""Whole runs that sample with vLLM."""

from __future__ import annotations

import pytest
import torch

from appo.monitoring.trajectory_files import read_trajectories
from appo.rollouts import EngineMismatchError
from tests.engines.vllm_installed import SHARE_OPTIONS
from tests.small_run import run
from tests.training.callbacks.test_fit import history, weights

pytestmark = pytest.mark.vllm

OPTIONS = (
    "--rollout.engine=VLLMEngine",
    "--rollout.reward=tests.small_run.EvenTokens",
    "--trainer.max_epochs=2",
    *SHARE_OPTIONS,
)


@pytest.mark.parametrize("branch_when", ["iteration", "minibatch"])
def test_two_iterations(tmp_path, policy_folder, branch_when):
    folder = run("fit", tmp_path, policy_folder, *OPTIONS, f"--rollout.branching.when={branch_when}")
    rows = history(folder)
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        assert row["rollout/branches_made"] == row["rollout/branches_wanted"] == 8
        assert row["train/grad_norm"] > 0
        assert row["rollout/probe_max"] < 1e-4
    assert rows[0]["rollout/prefix_cache_hit"] > 0
    # Log-ratios are the engine's rounding, unless the policy has changed since it sampled.
    assert (rows[1]["rollout/log_ratio_std"] > 1e-3) == (branch_when == "minibatch")
    if branch_when == "iteration":
        assert rows[1]["rollout/mismatch_max"] < 1e-4
    records = list(read_trajectories(folder / "trajectories/iteration_00001.jsonl.zst"))
    assert {v for record in records for v in record["policy_versions"]} - {-1} >= {2}
    assert not torch.equal(weights(folder / "policy")["lm_head.weight"], weights(policy_folder)["lm_head.weight"])


def test_a_run_stops_when_engine_and_trainer_disagree(tmp_path, policy_folder):
    expected = r"within rollout.sampling.max_mismatch = 1e-12 nats in the mean, got \d"
    with pytest.raises(EngineMismatchError, match=expected):
        run("fit", tmp_path, policy_folder, *OPTIONS, "--rollout.sampling.max_mismatch=1e-12")

"""A whole run that samples with a real `vllm serve` while it trains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appo.monitoring.trajectory_files import read_trajectories
from tests.engines.vllm_server.served_policy import ServedPolicy
from tests.rollouts.async_engines import sampling_threads
from tests.small_run import run
from tests.training.callbacks.test_fit import history

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def server(tmp_path_factory, policy_folder) -> Iterator[ServedPolicy]:
    server = ServedPolicy(str(policy_folder), tmp_path_factory.mktemp("served") / "server.log")
    server.start()
    yield server
    server.kill()


def test_the_next_iteration_is_sampled_by_servers_while_the_current_one_trains(tmp_path, policy_folder, server):
    folder = run(
        "fit", tmp_path, policy_folder, "--trainer.max_epochs=3", "--rollout.reward=tests.small_run.EvenTokens",
        "--rollout.engine=VLLMServerEngine", f"--rollout.engine.addresses=[{server.address}]",
        "--rollout.branching.when=iteration", "--rollout.sampling.lag=1", "--rollout.sampling.overlap=true",
        "--data.max_prompt_tokens=200",
    )  # fmt: skip
    rows = [row for row in history(folder) if "train/loss" in row]
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["rollout/branches_made"] == row["rollout/branches_wanted"] == 8
        assert row["rollout/probe_max"] < 1e-4
        assert 0 <= row["rollout/trainer_idle"] < 1
        assert 0 <= row["rollout/engine_idle"] < 1
    assert ["rollout/waiting_s" in row for row in rows] == [True, True, False]
    for number, versions in enumerate([{0}, {0, 2}, {2, 4}]):
        # An iteration makes two updates. Its trajectories are of the policy before those of the iteration before it.
        records = list(read_trajectories(folder / f"trajectories/iteration_{number:05d}.jsonl.zst"))
        assert {version for record in records for version in record["policy_versions"]} == {-1, *versions}
        initial = [record for record in records if record["parent_id"] is None]
        assert {version for record in initial for version in record["policy_versions"]} == {-1, min(versions)}
    assert not sampling_threads()

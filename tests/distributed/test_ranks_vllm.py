"""Runs on two processes that sample with vLLM, in the processes themselves or in servers that both ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appo.monitoring.trajectory_files import read_trajectories
from tests.distributed.whole_runs import difference, fit, iterations
from tests.engines.vllm_installed import SHARE_OPTIONS
from tests.engines.vllm_server.served_policy import ServedPolicy

pytestmark = [pytest.mark.vllm, pytest.mark.distributed]

OPTIONS = [
    "--rollout.engine=VLLMEngine",
    *SHARE_OPTIONS,
    # Of three prompts an update, one process has two.
    "--data.prompts_per_iteration=6",
    "--data.prompts_per_minibatch=3",
    "--rollout.reward=tests.small_run.EvenTokens",
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=2",
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, policy_folder) -> Path:
    """The folder of a run on one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = fit(folder, policy_folder, "auto", 1, *OPTIONS)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def servers(tmp_path_factory, policy_folder) -> Iterator[list[ServedPolicy]]:
    """Two servers of the policy."""
    folder = tmp_path_factory.mktemp("served")
    served = [ServedPolicy(str(policy_folder), folder / f"{number}.log") for number in range(2)]
    for server in served:
        server.start()
    yield served
    for server in served:
        server.kill()


def sampled(folder: Path, stage: str) -> list[list[dict]]:
    """The trajectories of each process."""
    return [list(read_trajectories(path)) for path in sorted(folder.glob(f"trajectories/{stage}*"))]


@pytest.mark.parametrize(("strategy", "tensor_parallel_size"), [("ddp", 1), ("fsdp2", 2), ("tensor", 2)])
def test_each_process_samples_its_prompts_with_the_weights_that_are_trained(
    tmp_path, policy_folder, alone, strategy, tensor_parallel_size
):
    split = f"--rollout.engine.tensor_parallel_size={tensor_parallel_size}"
    done = fit(tmp_path, policy_folder, strategy, 2, *OPTIONS, split)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = iterations(tmp_path)
    assert [row["epoch"] for row in rows] == [0, 1]
    for row in rows:
        # The largest of both processes: of the probe, and of all tokens that were sampled by the same weights.
        assert row["rollout/probe_max"] < 1e-4
        assert row["rollout/mismatch_max"] < 1e-4
    first, second = sampled(tmp_path, "iteration_00001")
    assert {record["prompt"]["id"] for record in first}.isdisjoint(record["prompt"]["id"] for record in second)
    for records in (first, second):
        assert {version for record in records for version in record["policy_versions"]} - {-1} >= {2}
    for stage in ("iteration_00001", "validation_00001"):
        ours, theirs = (
            sorted(record["text"] for records in sampled(folder, stage) for record in records)
            for folder in (tmp_path, alone)
        )
        assert ours == theirs
    assert difference(tmp_path / "policy", alone / "policy") <= 1e-5


def test_an_engine_spans_as_many_processes_as_divide_them(tmp_path, policy_folder):
    done = fit(tmp_path, policy_folder, "ddp", 2, *OPTIONS, "--rollout.engine.tensor_parallel_size=3")
    assert done.returncode != 0
    assert "rollout.engine.tensor_parallel_size must divide the 2 processes of the training, got 3" in done.stderr


def test_a_process_that_dies_ends_the_run_of_the_others_that_share_its_engine(tmp_path, policy_folder):
    done = fit(
        tmp_path, policy_folder, "ddp", 2, *OPTIONS, "--rollout.engine.tensor_parallel_size=2",
        "--rollout.rank_timeout_s=8", "--rollout.reward=tests.distributed.failing_parts.KilledInSampling",
    )  # fmt: skip
    assert done.returncode != 0
    assert "in phase 'sampling'" in done.stderr, done.stderr[-3000:]


def test_processes_share_servers_and_the_first_one_alone_brings_weights_to_them(tmp_path, policy_folder, servers):
    addresses = f"--rollout.engine.addresses={[server.address for server in servers]}"
    served = ["--rollout.engine=VLLMServerEngine", addresses]
    done = fit(tmp_path, policy_folder, "fsdp2", 2, *OPTIONS[1 + len(SHARE_OPTIONS) :], *served)
    assert done.returncode == 0, done.stderr[-3000:]
    for row in iterations(tmp_path):
        assert row["rollout/probe_max"] < 1e-4
        assert row["rollout/mismatch_max"] < 1e-4
    first, second = sampled(tmp_path, "iteration_00001")
    assert {record["prompt"]["id"] for record in first}.isdisjoint(record["prompt"]["id"] for record in second)
    for records in (first, second):
        assert {version for record in records for version in record["policy_versions"]} - {-1} >= {2}
    for server in servers:
        calls = server.log.read_text()
        # As the run starts, and behind each of its four updates.
        assert calls.count("POST /collective_rpc") == 5
        assert calls.count("POST /inference/v1/generate") > 20

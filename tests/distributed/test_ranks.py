"""Runs on two processes against runs on one."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from appo.commands.export import export_policy
from appo.commands.record.repeat import is_of_the_machine
from appo.monitoring.trajectory_files import read_trajectories
from tests.distributed.failing_parts import TIMED_OUT
from tests.distributed.whole_runs import ADAPTED, TRAINED, difference, fit, fit_by_command, iterations

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def alone(tmp_path_factory, policy_folder) -> Path:
    """The folder of a run on one process."""
    folder = tmp_path_factory.mktemp("alone")
    assert fit(folder, policy_folder, "auto", 1, *TRAINED).returncode == 0
    return folder


@pytest.fixture(scope="module")
def alone_with_adapter(tmp_path_factory, policy_folder) -> Path:
    """The folder of a run on one process that trains an adapter."""
    folder = tmp_path_factory.mktemp("adapted")
    assert fit(folder, policy_folder, "auto", 1, *ADAPTED, "--trainer.max_epochs=2").returncode == 0
    return folder


@pytest.mark.parametrize(("start", "strategy"), [(fit_by_command, "ddp"), (fit, "fsdp2"), (fit, "tensor")])
def test_two_processes_train_as_one_does(tmp_path, policy_folder, alone, start, strategy):
    done = start(tmp_path, policy_folder, strategy, 2, *TRAINED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert difference(tmp_path / "policy", alone / "policy") <= 1e-5
    assert difference(tmp_path / "policy", policy_folder) > 1e-3
    # What is logged is of both processes: counts are equal, and values but for rounding.
    for ours, theirs in zip(iterations(tmp_path), iterations(alone), strict=True):
        unequal = {"rollout/prefix_cache_hit", "rollout/probe_mean", "rollout/probe_max"}
        names = {name for name in theirs.keys() - unequal if not is_of_the_machine(name)}
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-3, abs=1e-5)  # fmt: skip  # noqa: E501
    for stage in ("iteration_00002", "validation_00002"):
        texts = [
            sorted(
                record["text"] for path in folder.glob(f"trajectories/{stage}*") for record in read_trajectories(path)
            )
            for folder in (tmp_path, alone)
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("strategy", ["fsdp2", "tensor"])
def test_a_scorer_may_ask_the_policy_on_one_process_alone(tmp_path, policy_folder, strategy):
    scorer = "--rollout.scorer=tests.distributed.asking_scorer.AskingScorer"
    done = fit(tmp_path, policy_folder, strategy, 2, *TRAINED, scorer, "--trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("strategy", ["fsdp2", "tensor"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, policy_folder, alone, strategy):
    # Stopped after each iteration by its budget of tokens, as a user would stop it.
    total = 0
    rows = []
    for number, chosen in enumerate(((strategy, 2), ("fsdp2", 1), (strategy, 2))):
        resumed = ["--ckpt_path=last"] if number else []
        done = fit(tmp_path, policy_folder, *chosen, *TRAINED, f"--rollout.stop_after_tokens={total + 1}", *resumed)
        assert done.returncode == 0, done.stderr[-3000:]
        (row,) = newest(tmp_path)
        total = int(row["rollout/generated_tokens_total"])
        rows.append(row)
    for ours, theirs in zip(rows, iterations(alone), strict=True):
        assert ours["epoch"] == theirs["epoch"]
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-6)
        assert ours["rollout/generated_tokens_total"] == theirs["rollout/generated_tokens_total"]
    assert difference(tmp_path / "policy", alone / "policy") <= 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_an_adapter_as_one_does_and_go_on_with_it(
    tmp_path, policy_folder, alone_with_adapter, strategy
):
    assert fit(tmp_path, policy_folder, strategy, 2, *ADAPTED, "--trainer.max_epochs=1").returncode == 0
    done = fit(tmp_path, policy_folder, strategy, 2, *ADAPTED, "--trainer.max_epochs=2", "--ckpt_path=last")
    assert done.returncode == 0, done.stderr[-3000:]
    assert difference(tmp_path / "policy", alone_with_adapter / "policy") <= 1e-5
    assert difference(tmp_path / "policy", policy_folder) > 1e-3
    ours, theirs = (
        load_file(folder / "policy/adapter/adapter_model.safetensors") for folder in (tmp_path, alone_with_adapter)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-5, rtol=0)
    # The checkpoint becomes what the run wrote at its end, whether it has the policy's own weights or not.
    merged, adapter = "model.safetensors", "adapter/adapter_model.safetensors"
    export_policy(tmp_path / "checkpoints/last.ckpt", tmp_path / "exported")
    export_policy(tmp_path / "checkpoints/last.ckpt", tmp_path / "exported/adapter", form="adapter")
    for file in (merged, adapter):
        exported, expected = (load_file(tmp_path / folder / file) for folder in ("exported", "policy"))
        assert exported.keys() == expected.keys()
        assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items()), file


@pytest.mark.parametrize(
    ("strategy", "options", "logged"),
    [
        ("fsdp", ["--model.sharding.param_dtype=bfloat16", "--model.sharding.reduce_dtype=float32"], "with FSDP2"),
        ("fsdp2", ["--trainer.precision=bf16-mixed"], ""),
        ("tensor", ["--trainer.precision=bf16-mixed"], ""),
    ],
)
def test_gathered_weights_compute_in_another_precision_than_shards_are_kept_in(
    tmp_path, policy_folder, strategy, options, logged
):
    done = fit(tmp_path, policy_folder, strategy, 2, *TRAINED, "--trainer.max_epochs=1", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert logged in done.stderr
    (row,) = iterations(tmp_path)
    # The engine samples in float32.
    assert 1e-4 < row["rollout/mismatch_max"] < 0.1
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert difference(tmp_path / "policy", policy_folder) > 1e-3


def test_shards_do_not_leave_a_cpu(tmp_path, policy_folder):
    done = fit(tmp_path, policy_folder, "fsdp2", 2, "--model.sharding.cpu_offload=true")
    assert done.returncode != 0
    assert "model.sharding.cpu_offload must be false with trainer.accelerator=cpu, got true" in done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.lora.rank=4", "model.lora must be null with trainer.strategy.tensor_parallel_size = 2"),
        (
            "--model.compile=true",
            "model.compile must be false with trainer.strategy.tensor_parallel_size = 2, got true",
        ),
    ],
)
def test_what_tensor_parallelism_cannot_do_is_refused(tmp_path, policy_folder, option, message):
    done = fit(tmp_path, policy_folder, "tensor", 2, option)
    assert done.returncode != 0
    assert message in done.stderr


def newest(folder: Path) -> list[dict[str, float]]:
    """The iterations of the run that was last in a folder."""
    last = max(folder.glob("csv/version_*"), key=lambda path: int(path.name.split("_")[1]))
    moved = folder / "newest/csv/version_0"
    moved.parent.mkdir(parents=True, exist_ok=True)
    moved.unlink(missing_ok=True)
    moved.symlink_to(last)
    return iterations(folder / "newest")


@pytest.mark.parametrize(
    ("start", "option", "strategy", "phase"),
    [
        (fit_by_command, "--rollout.reward=tests.distributed.failing_parts.KilledInSampling", "ddp", "sampling"),
        (fit, "--model.loss=tests.distributed.failing_parts.KilledInUpdate", "fsdp2", "update"),
        (fit_by_command, "--model.loss=tests.distributed.failing_parts.HangingInUpdate", "fsdp2", "update"),
        (fit, "--rollout.engine=tests.distributed.failing_parts.HangingEngine", "ddp", "weights"),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_run_and_is_named(
    tmp_path, policy_folder, start, option, strategy, phase
):
    began = perf_counter()
    done = start(
        tmp_path, policy_folder, strategy, 2, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--rollout.rank_timeout_s=8", option,
    )  # fmt: skip
    assert perf_counter() - began < 120
    assert done.returncode != 0
    # Lightning, which looks every five seconds, may be the first to see that its process is gone, and says so.
    is_seen_by_launcher = start is fit_by_command and "Killed" in option
    if is_seen_by_launcher and "Forcefully terminating all other processes" in done.stderr:
        return
    assert f"in phase '{phase}'" in done.stderr
    assert "rank 1 has stopped or did not answer rank 0" in done.stderr or "rank 1 ended with exit code" in done.stderr


@pytest.mark.parametrize(
    ("option", "phase"),
    [
        ("--rollout.reward=tests.distributed.failing_parts.TimedOutReward", "sampling"),
        ("--model.loss=tests.distributed.failing_parts.TimedOutLoss", "update"),
    ],
)
def test_an_error_of_the_users_own_ends_the_run_as_what_it_is(tmp_path, policy_folder, option, phase):
    done = fit(
        tmp_path, policy_folder, "ddp", 2, "--trainer.max_epochs=1", "--rollout.reward=tests.small_run.EvenTokens",
        "--rollout.rank_timeout_s=8", option,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"[rank0]: RuntimeError: {TIMED_OUT}\n" in done.stderr
    assert f"[rank0]: raised on rank 0 of 2 in phase '{phase}'\n" in done.stderr
    assert "did not answer rank 0" not in done.stderr

"""A user's mistake ends in one line, a defect and code of the user's with a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from appo.__main__ import main
from appo.core.trajectory import RewardResult, Trajectory
from appo.engines import Completion, HFEngine
from appo.policy.loading import check_policy_folder
from appo.rewards import Reward
from tests.small_run import CONFIG, SMALL


@dataclass(frozen=True)
class Refusing(Reward):
    """A user's own, with a check of its own."""

    limit: int = 0

    def __post_init__(self) -> None:
        raise ValueError(f"limit must be positive, got {self.limit}")

    def __call__(self, trajectory: Trajectory) -> RewardResult:
        return RewardResult(0.0)


class Short(HFEngine):
    """A user's own, which loses the last log-prob of what it has sampled."""

    def step(self) -> list[Completion]:
        return [replace(each, behavior_log_probs=each.behavior_log_probs[:-1]) for each in super().step()]


@pytest.fixture
def appo(monkeypatch, capsys):
    """Runs a command line; returns what it has written to stderr and its status."""
    monkeypatch.setenv("APPO_DEBUG", "0")

    def run(*args: str) -> tuple[str, object]:
        monkeypatch.setattr(sys, "argv", ["appo", *args])
        with pytest.raises(SystemExit) as exit_info:
            main()
        return capsys.readouterr().err, exit_info.value.code

    return run


def fit(folder: Path, policy: Path | str, *options: str) -> list[str]:
    return ["--config", CONFIG, *SMALL, f"--model.policy={policy}", f"--trainer.default_root_dir={folder}", *options]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "plan", "pilot"])
def test_a_missing_policy_is_one_line(command, appo, tmp_path):
    error, status = appo(command, *fit(tmp_path, "/nowhere"))
    assert status == 2
    assert "Traceback" not in error
    *_, line = error.splitlines()
    assert line == "error: model.policy must be a Hugging Face model folder with a config.json, got '/nowhere'"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--data.max_prompt_tokens=5", "at most data.max_prompt_tokens = 5 tokens, question"),
        (
            "--rollout.limits.max_response_tokens=9999",
            "must not exceed the 512 positions of model.policy, got 64 + 9999",
        ),
        ("--trainer.precision=bf16-true", "trainer.precision must be 32-true or bf16-mixed, got bf16-true"),
        ("--trainer.devices=[]", "devices"),
        ("--ckpt_path=/no.ckpt", "/no.ckpt"),
        ("--model.lora.rank=0", "error: model.lora.rank must be at least 1, got 0"),
        ("--trainer.max_epochs=x", "error: trainer.max_epochs: Expected a int. Got value: x"),
        ("--trainer.default_root_dir=/proc/no", "/proc/no"),
        ("--model.dtype=float7", "error: model.dtype: Expected a Literal['float32', 'bfloat16', 'auto']"),
        (
            "--rollout.tools=[{class_path: MCPTools, init_args: {command: [/no/such]}}]",
            "the MCP server '/no/such' could not be started or reached",
        ),
        ("--rollout.scorer.clip=1.5", "error: clip must lie in [0, 1), got 1.5"),
        ("--rollout.branching.num_roots=many", "error: rollout.branching.num_roots"),
    ],
)
def test_what_setup_refuses_is_one_line(option, words, appo, tmp_path, policy_folder):
    error, status = appo("fit", *fit(tmp_path, policy_folder, option))
    assert status == 2
    assert "Traceback" not in error
    *_, line = error.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_policy_that_needs_code_of_its_own_is_told(tmp_path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="it needs code of its own, which is not run; convert it"):
        check_policy_folder(str(tmp_path))


def test_a_folder_that_is_not_there_is_looked_for_where_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="got 'models/tiny': there is no such folder in"):
        check_policy_folder("models/tiny")


def test_a_policy_that_cannot_be_read_is_one_line(appo, tmp_path):
    (tmp_path / "config.json").write_text("{")
    error, status = appo("fit", *fit(tmp_path, tmp_path))
    assert status == 2
    assert "Traceback" not in error
    *_, line = error.splitlines()
    assert line.startswith(f"error: model.policy must be a model that transformers can read, got '{tmp_path}': ")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["report", "--run=/no", "--before=/no", "--after=/no"],
            "no csv/version_*/metrics.csv with an iteration in /no",
        ),
        (["export", "--ckpt=/no", "--out=/no/out"], "ckpt must be"),
        (["ablate", "--seeds=0"], "tokens must be given: --tokens on the command line, or `tokens:` in --spec"),
        (["sft", "--config=/no.yaml"], "config must name a file, got '/no.yaml'"),
        (["rport"], "no command is named 'rport' (did you mean 'report'?); commands: fit, "),
    ],
)
def test_mistakes_of_other_commands_are_one_line(args, line, appo):
    error, status = appo(*args)
    assert status == 2
    assert error.startswith(f"error: {line}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("place", ["first", "last", "environment"])
def test_the_traceback_of_a_mistake_is_shown_where_asked_for(place, appo, monkeypatch):
    args = ["export", "--ckpt=/no", "--out=/no/out"]
    if place == "environment":
        monkeypatch.setenv("APPO_DEBUG", "1")
    else:
        args.insert(0 if place == "first" else len(args), "--debug")
    error, status = appo(*args)
    assert status == 2
    assert error.startswith("Traceback (most recent call last):\n")
    assert error.splitlines()[-1].startswith("error: ckpt must be")


def test_a_check_of_the_users_own_shows_its_traceback(tmp_path, policy_folder, monkeypatch):
    args = fit(tmp_path, policy_folder, "--rollout.reward=tests.commands.test_errors.Refusing")
    monkeypatch.setattr(sys, "argv", ["appo", "fit", *args])
    with pytest.raises(ValueError, match="limit must be positive, got 0"):
        main()


def test_an_error_in_the_midst_of_a_run_shows_its_traceback(tmp_path, policy_folder, monkeypatch):
    args = fit(tmp_path, policy_folder, "--trainer.max_epochs=1", "--rollout.engine=tests.commands.test_errors.Short")
    monkeypatch.setattr(sys, "argv", ["appo", "fit", *args])
    with pytest.raises(ValueError, match="must have shape"):
        main()


def test_the_users_own_code_behind_a_check_of_ours_shows_its_traceback(tmp_path, policy_folder, monkeypatch):
    options = ["--rollout.reward=FunctionReward", "--rollout.reward.function=broken_at_import:score"]
    (tmp_path / "broken_at_import.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["appo", "fit", *fit(tmp_path, policy_folder, *options)])
    with pytest.raises(ValueError, match="function must be importable"):
        main()


def test_what_no_check_has_said_shows_its_traceback(tmp_path, monkeypatch):
    metrics = tmp_path / "csv/version_0/metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("epoch\none\n")
    monkeypatch.setattr(
        sys, "argv", ["appo", "report", *(f"--{name}={tmp_path}" for name in ("run", "before", "after"))]
    )
    with pytest.raises(ValueError, match="could not convert string to float: 'one'"):
        main()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_mistake_is_one_line_on_every_rank(tmp_path, policy_folder):
    args = fit(
        tmp_path,
        policy_folder,
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--rollout.limits.max_response_tokens=9999",
    )
    result = subprocess.run(
        [sys.executable, "-m", "appo", "fit", *args], capture_output=True, text=True, env={**os.environ}, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    message = "must not exceed the 512 positions of model.policy, got 64 + 9999"
    lines = [line for line in result.stderr.splitlines() if message in line]
    assert [line.split(":")[0] for line in sorted(lines)] == ["error on rank 1", "error"]
    # The first word comes before what takes seconds to import, and once.
    assert result.stderr.startswith("appo fit: loading torch, transformers and Lightning\n")
    assert result.stderr.count("loading torch") == 1


@pytest.mark.slow
def test_a_torchvision_for_another_torch_is_named_with_what_removes_it(tmp_path, policy_folder):
    # What it does when it is imported; the operator is registered by a library that another torch can load.
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *args: None)\n"
    )
    (tmp_path / "torchvision-0.20.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.20.0.dist-info/METADATA").write_text("Name: torchvision\nVersion: 0.20.0\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "appo", "fit", *fit(tmp_path, policy_folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "error: torchvision does not fit the torch that is installed (operator torchvision::nms does not exist), and "
        "text needs none of its kind: pip uninstall -y torchvision torchaudio torchcodec"
    )

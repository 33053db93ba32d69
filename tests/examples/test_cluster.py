"""Scripts for clusters, with a scheduler that starts every command here, and commands that are printed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from appo.commands.known_keys import check_keys

FOLDER = Path(__file__).parents[2] / "examples/cluster"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
ARGS = ("--config", str(FOLDER.parents[1] / "configs/appo_paper.yaml"), "--data.seed=3")


@pytest.fixture
def printed(tmp_path):
    """The commands of a script, a list of words each, in the order in which they are started."""
    scheduler = {
        # Leaves out its own options, and plays one task; a training that has servers waits for them.
        "srun": """\
while [[ $1 == --* ]]; do shift; done
if [[ $1 != bash && -p served ]]; then read -r < served; fi
SLURM_LOCALID=1 "$@"
if [[ $1 == bash ]]; then echo > served; fi""",
        "scontrol": "echo alpha; echo beta; echo gamma",
        "nvidia-smi": "for i in 0 1 2 3; do echo GPU $i; done",
    }
    for name, body in scheduler.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(script: Path, **variables: str) -> list[list[str]]:
        job = {"SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NODELIST": "nodes"}
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **job, **variables}
        if "servers" in script.name:
            os.mkfifo(tmp_path / "served")
        shown = {"APPO": "printf %s\\n appo", "VLLM": "printf %s\\n vllm"}
        done = subprocess.run(
            [str(script), *ARGS],
            cwd=tmp_path,
            env=environment | shown,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        commands: list[list[str]] = []
        for word in done.stdout.splitlines():
            if word in ("appo", "vllm"):
                commands.append([])
            else:
                commands[-1].append(word)
        return commands

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_one_that_shells_understand(script):
    subprocess.run(["bash", "-n", script], check=True)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker is not None, "the extra `dev` brings shellcheck"
    subprocess.run([checker, script], check=True)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("one_node.sh", ("--trainer.devices=4",)),
        ("slurm.sbatch", ("--trainer.num_nodes=3", "--trainer.devices=8")),
        ("slurm_servers.sbatch", ("--trainer.num_nodes=2", "--trainer.devices=8")),
    ],
)
def test_a_training_is_started_with_options_that_there_are(printed, name, sizes):
    commands = printed(FOLDER / name, POLICY="some/policy", RUN="shared/run")
    (fit,) = (command for command in commands if command[0] == "fit")
    check_keys("fit", fit[1:])
    assert set(sizes) <= set(fit)
    assert fit[1 : 1 + len(ARGS)] == list(ARGS)
    assert "--trainer.default_root_dir=shared/run" in fit


def test_every_server_has_gpus_of_its_own_and_is_asked(printed):
    commands = printed(FOLDER / "slurm_servers.sbatch", POLICY="some/policy", ENGINE_GPUS="2")
    serve = next(command for command in commands if command[0] == "serve")
    assert serve[1:6] == ["some/policy", "--port", "8001", "--tensor-parallel-size", "2"]
    fit = next(command for command in commands if command[0] == "fit")
    (addresses,) = (word.partition("=")[2] for word in fit if word.startswith("--rollout.engine.addresses"))
    assert yaml.safe_load(addresses) == [f"http://alpha:{8000 + number}" for number in range(4)]


def test_a_run_on_kubernetes_is_one_that_appo_takes():
    (job,) = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    args = [arg.replace("recipe:appo_paper", ARGS[1]) for arg in container["args"]]
    check_keys("fit", args)
    assert f"--trainer.num_nodes={worker['replicas']}" in args
    assert f"--trainer.devices={job['spec']['nprocPerNode']}" in args


def test_engines_on_kubernetes_are_open_to_the_training_alone():
    service, engines, policy = yaml.safe_load_all((FOLDER / "kubernetes_servers.yaml").read_text())
    label = engines["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == label
    (job,) = yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text())
    trained = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["metadata"]["labels"]
    (source,) = policy["spec"]["ingress"][0]["from"]
    assert source["podSelector"]["matchLabels"] == trained

"""One run at a time writes a folder."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys

import lightning as L
import lightning.fabric.utilities.rank_zero
import lightning_utilities.core.rank_zero
import pytest

from appo.commands.run_folder import reserved
from tests.small_run import run

HOLD = """
import sys, time
from pathlib import Path
from appo.commands.run_folder import reserved
with reserved(Path(sys.argv[1])):
    print("reserved", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_run_writes_is_refused_until_that_is_dead(tmp_path, policy_folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "reserved\n"
        with pytest.raises(ValueError, match=f"no other run is writing, got {tmp_path}: process {other.pid} is"):
            run("fit", tmp_path, policy_folder, "--trainer.max_epochs=1")
        assert not (tmp_path / "csv").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
    with reserved(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match=r"default_root_dir must be a folder that can be written to, got .*file/run"),
        reserved(tmp_path / "file/run"),
    ):
        pass


@pytest.mark.parametrize("name", ["", "run"])
def test_a_folder_on_a_file_system_that_is_read_only_is_refused(tmp_path, name):
    """Which keeps out even a user who may do everything."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o ro none {shlex.quote(str(tmp_path))}"
    if shutil.which("unshare") is None or subprocess.run([*alone, mount], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    hold = shlex.join([sys.executable, "-c", HOLD, str(tmp_path / name)])
    ended = subprocess.run([*alone, f"{mount} && {hold}"], capture_output=True, text=True, timeout=120, check=False)
    assert "default_root_dir must be a folder that can be written to" in ended.stderr
    assert f"[Errno {errno.EROFS}]" in ended.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LOCAL_RANK": "1"},
        {"NODE_RANK": "1"},
        {
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_PROCID": "1",
            "SLURM_LOCALID": "1",
            "SLURM_NODEID": "0",
        },
    ],
    ids=lambda environment: min(environment),
)
def test_other_processes_of_a_run_share_its_folder(tmp_path, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for module in (lightning.fabric.utilities.rank_zero, lightning_utilities.core.rank_zero):
        monkeypatch.setattr(module.rank_zero_only, "rank", 0)  # a trainer changes it
    other = L.Trainer(strategy="ddp", devices=2, num_nodes=1 + ("NODE_RANK" in environment), accelerator="cpu")
    with reserved(tmp_path), reserved(tmp_path, other.is_global_zero):
        pass
    assert int((tmp_path / ".lock").read_text()) == os.getpid()

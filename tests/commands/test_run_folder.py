"""One run at a time writes a folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

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


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_other_processes_of_a_run_share_its_folder(tmp_path, monkeypatch, name):
    with reserved(tmp_path):
        monkeypatch.setenv(name, "1")
        with reserved(tmp_path):
            pass
    assert int((tmp_path / ".lock").read_text()) == os.getpid()

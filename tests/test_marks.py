"""Which tests run where."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.marks import all_marks, hide_gpus, reason_to_skip

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("marks", "vllm_takes_gpus", "num_gpus", "reason"),
    [
        ({"slow"}, True, 0, ""),
        ({"slow", "cpu"}, True, 1, ""),
        ({"gpu"}, False, 1, ""),
        ({"gpu"}, False, 0, "there is no GPU"),
        ({"vllm"}, False, 0, ""),
        ({"vllm", "cpu", "distributed"}, False, 0, ""),
        ({"vllm"}, True, 1, ""),
        ({"vllm"}, True, 0, "there is no GPU"),
        ({"vllm", "cpu"}, True, 1, "holds on a CPU alone"),
        ({"vllm", "distributed"}, True, 1, "would share a GPU"),
    ],
)
def test_what_a_gpu_is_for_is_left_to_it(marks, vllm_takes_gpus, num_gpus, reason):
    found = reason_to_skip(all_marks(marks, vllm_takes_gpus=vllm_takes_gpus), num_gpus)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("selection", "visible"), [("", ""), ("not (slow or gpu)", ""), ("gpu", "0,1"), ("gpu and not slow", "0,1")]
)
def test_tests_of_a_gpu_alone_see_it(selection, visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    hide_gpus(selection)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_no_test_here_sees_a_gpu_by_chance(request):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" or request.config.option.markexpr.startswith("gpu")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_make_runs_those_of_a_gpu_in_one_process_where_there_is_one(tmp_path, has_gpu):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n" + ("echo GPU 0\n" if has_gpu else "exit 9\n"))
    driver.chmod(0o755)
    done = subprocess.run(
        ["make", "--dry-run", "test"], cwd=ROOT, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if "-m pytest" in line]
    assert " -n 3 " in lines[0]
    assert [line.split("-m pytest ")[1].startswith("-m gpu") for line in lines[1:]] == [True] * has_gpu

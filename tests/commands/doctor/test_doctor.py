"""The doctor on a CPU, by its command line."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from appo.commands.doctor.command import main
from appo.commands.doctor.steps import STEPS


def diagnosed(folder: Path, *args: str) -> tuple[int, dict[str, dict[str, object]]]:
    """The exit code, and what was found, by the names of steps."""
    code = main(["--device", "cpu", "--out", str(folder), *args])
    report = json.loads((folder / "doctor.json").read_text())
    return code, {step["step"]: step for step in report["steps"]}


@pytest.mark.parametrize("option", ["--help", "--list"])
def test_what_it_offers_is_said_without_torch(option):
    code = f"""
import sys
from appo.commands.doctor.command import main
try:
    main(["{option}"])
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["False"]
    assert "--only" in done.stdout or all(step.name in done.stdout for step in STEPS)


def test_every_step_has_its_function_and_a_name_of_its_own():
    assert len({step.name for step in STEPS}) == len(STEPS)
    for step in STEPS:
        module, function = step.function.split(":")
        assert callable(getattr(importlib.import_module(f"appo.commands.doctor.{module}"), function))


@pytest.mark.slow
def test_a_cpu_passes(tmp_path, capsys):
    names = [
        "versions",
        "loading",
        "attention",
        "log-probs",
        "packing",
        "sampling",
        "optimizer",
        "hf-32",
        "iteration-32",
    ]
    code, found = diagnosed(tmp_path, f"--only={','.join(names)}")
    assert [step["status"] for step in found.values()] == ["PASS"] * len(names), found
    assert code == 0
    assert f"{len(names)} passed, 0 failed, 0 skipped" in capsys.readouterr().out
    figures = found["hf-32"]["figures"]
    assert figures["mismatch of a token, least and most"][1] < 1e-4 < figures["mismatch mean before the update"][0]
    assert 0 < found["iteration-32"]["figures"]["largest change of a weight"] < 0.1


@pytest.mark.slow
@pytest.mark.gpu
def test_a_gpu_passes(tmp_path):
    code = main(["--device", "cuda", "--out", str(tmp_path)])
    steps = json.loads((tmp_path / "doctor.json").read_text())["steps"]
    assert [step for step in steps if step["status"] == "FAIL"] == []
    assert code == 0
    assert sum(step["status"] == "PASS" for step in steps) >= 12


@pytest.mark.slow
def test_it_goes_on_after_a_step_that_fails_hangs_or_does_not_apply(tmp_path, capsys):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/config.json").write_text("{}")
    code, found = diagnosed(tmp_path, "--only=loading,other-device,sampling")
    assert code == 1
    assert [found[name]["status"] for name in ("loading", "other-device", "sampling")] == ["FAIL", "SKIP", "PASS"]
    assert str(tmp_path / "loading.log") in found["loading"]["advice"]
    assert "Traceback" in (tmp_path / "loading.log").read_text()
    code, found = diagnosed(tmp_path / "whole", "--only=compile", "--limit-s=0.2")
    assert (code, found["compile"]["status"]) == (1, "FAIL")
    assert found["compile"]["message"] == "not done within 0.2 s"
    assert "FAIL  compile" in capsys.readouterr().out


def test_a_name_that_is_no_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--only=loading,lodaing"])
    assert "must name steps of --list, got lodaing" in capsys.readouterr().err

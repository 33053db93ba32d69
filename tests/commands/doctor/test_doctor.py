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
    code, found = diagnosed(tmp_path)
    skipped = {name for name, step in found.items() if step["status"] == "SKIP"}
    # vLLM and a compiler are not everywhere.
    assert skipped - {"vllm-32", "compile"} == {"vllm-bf16", "offload", "other-device", "ranks-offload"}
    assert [step for step in found.values() if step["status"] == "FAIL"] == []
    assert code == 0
    assert list(found) == [step.name for step in STEPS]
    assert f"{len(STEPS) - len(skipped)} passed, 0 failed, {len(skipped)} skipped" in capsys.readouterr().out
    figures = {name: step["figures"] for name, step in found.items()}
    assert figures["hf-32"]["mismatch of a token, least and most"][1] < 1e-4
    assert figures["hf-32"]["mismatch mean before the update"][0] > 1e-4
    assert 0 < figures["iteration-32"]["largest change of a weight"] < 0.1
    assert figures["ranks-fsdp2"]["updates before and after"] == "1, 2"
    assert "rank 1" in figures["ranks-stop"]["said"]


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

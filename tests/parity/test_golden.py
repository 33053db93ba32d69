import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.golden import load_cases

OWN = Path(__file__).with_name("appo_release.json")
ROOT = Path(__file__).parents[2]


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The project's own file with its first case alone, changed."""
    file = json.loads(OWN.read_text())
    file["cases"] = file["cases"][:1]
    change(file)
    path = folder / "golden.json"
    path.write_text(json.dumps(file))
    return path


def check(golden: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/parity/test_release.py"]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "APPO_GOLDEN": str(golden)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.pop("cases"), "must have a list of cases, got none"),
        (lambda file: file["cases"].clear(), "must have a list of cases, got none"),
        (lambda file: file.update(sapo=[1]), "must hold nothing but `cases` and words about them, got 'sapo'"),
        (lambda file: file["cases"][0].update(gspo={}), r"case 0 of .* got unknown \['gspo'\]"),
        (lambda file: file["cases"][0].pop("loss"), r"case 0 of .* got no \['loss'\]"),
        (lambda file: file["cases"][0]["loss"].pop("grad"), r"case 0 of .*, loss, .* got no \['grad'\]"),
        (lambda file: file["cases"][0]["loss"]["params"].update(tau=1), r", loss.params, .* got unknown \['tau'\]"),
        (lambda file: file["cases"][0]["branches"].clear(), "case 0 of .* must have branches, got none"),
        (lambda file: file["cases"][0]["branches"][0].pop("score"), r"a branch of case 0 .* got no \['score'\]"),
    ],
)
def test_a_file_that_would_not_be_checked_whole_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_cases(changed(tmp_path, change))


def test_the_variable_names_the_file_whose_cases_are_checked(tmp_path):
    same = check(changed(tmp_path, lambda file: None))
    assert same.returncode == 0, same.stdout
    assert "skipped" not in same.stdout

    def move_a_branch(file):
        file["cases"][0]["branches"][0]["position"] += 1

    other = check(changed(tmp_path, move_a_branch))
    assert other.returncode == 1
    assert "test_branches_of_the_scorer" in other.stdout
    assert check(changed(tmp_path, lambda file: file["cases"].clear())).returncode > 1

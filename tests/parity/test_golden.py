import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.copied_processes import Finished, run
from tests.parity.golden import load_cases

OWN = Path(__file__).with_name("appo_release.json")


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The project's own file with its first case alone, changed."""
    file = json.loads(OWN.read_text())
    file["cases"] = file["cases"][:1]
    change(file)
    path = folder / "golden.json"
    path.write_text(json.dumps(file))
    return path


def check(golden: Path) -> Finished:
    args = ["-q", "-p", "no:cacheprovider", str(OWN.with_name("test_release.py"))]
    return run(pytest.console_main, args, {"APPO_GOLDEN": str(golden)})


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


@pytest.mark.slow
def test_the_variable_names_the_file_whose_cases_are_checked(tmp_path):
    same = check(changed(tmp_path, lambda file: None))
    assert same.returncode == 0, same.output
    assert "skipped" not in same.output

    def move_a_branch(file):
        file["cases"][0]["branches"][0]["position"] += 1

    other = check(changed(tmp_path, move_a_branch))
    assert other.returncode == 1
    assert "test_branches_of_the_scorer" in other.output
    assert check(changed(tmp_path, lambda file: file["cases"].clear())).returncode > 1

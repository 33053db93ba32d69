"""What holds for the project's files rather than for its code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEV = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
LINTERS = ["ruff", "mypy", "import-linter", "pre-commit"]
# Beside the rooms of `src/appo`: what all components of a kind must satisfy, and values of the authors' release.
ACROSS_ROOMS = {"properties", "parity"}


def test_every_test_stands_where_what_it_tests_stands():
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").glob("*/**/test_*.py")]
    assert len(files) > 100
    for file in files:
        assert file.parts[0] in ACROSS_ROOMS or (ROOT / "src/appo" / file.parent).is_dir(), file


def test_hooks_before_a_commit_are_the_commands_of_make_lint():
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    commands = [line.removeprefix("\t$(BIN)/") for line in lint.splitlines()[1:]]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]]
    # Before a commit, ruff is given the files that changed, and mends what it can.
    assert hooks == ["ruff check --fix", "ruff format", *commands[2:]]
    assert commands[:2] == ["ruff check .", "ruff format --check ."]


@pytest.mark.parametrize("linter", LINTERS)
def test_a_linter_has_one_version(linter):
    (pinned,) = [line for line in DEV if re.match(rf"{linter}\b", line)]
    assert re.fullmatch(rf"{linter}==[\d.]+", pinned)


def test_every_dependency_has_a_lower_and_an_upper_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for line in (*project["dependencies"], *(line for extra in extras for line in extra)):
        if not line.startswith("appo["):
            assert re.search(r"==", line) or (">=" in line and re.search(r"<\d", line)), line

"""What `make test` installs is held by version and hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements/dev.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
LOCKED = {
    canonicalize_name(requirement.name): requirement
    for requirement in map(Requirement, re.findall(r"^(\w[^\\\n]*?)\s*\\$", LOCK, re.MULTILINE))
}


def direct(extras: list[str]) -> list[Requirement]:
    """What the project asks for itself, in its extras as well."""
    asked = [*PROJECT["dependencies"], *(each for extra in extras for each in OPTIONAL[extra])]
    requirements = list(map(Requirement, asked))
    nested = [extra for each in requirements if each.name == "appo" for extra in sorted(each.extras)]  # of a set
    return [each for each in requirements if each.name != "appo"] + (direct(nested) if nested else [])


@pytest.mark.parametrize("requirement", {str(each): each for each in direct(["dev"])}.values(), ids=str)
def test_every_requirement_is_locked_within_its_bounds(requirement):
    if requirement.name == "torch":  # each kind of machine has a build of its own
        assert str(LOCKED["torch"].marker) == 'sys_platform == "none"'
        return
    (pin,) = LOCKED[canonicalize_name(requirement.name)].specifier
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version)


def test_every_pin_has_hashes_and_comes_from_the_index():
    entries = re.split(r"\n(?=\S)", "\n".join(line for line in LOCK.splitlines() if not line.startswith("#")))
    assert {canonicalize_name(entry.partition("==")[0]) for entry in entries} == set(LOCKED)
    assert len(LOCKED) > 100
    for entry in entries:
        assert re.match(r"[\w.-]+==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in LOCK
    assert "--index" not in LOCK


def test_tests_install_nothing_else_by_name_than_torch_and_vllm():
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.split("$(VENV)/.dev:")[1].split("\n\n")[0]
    installs = re.findall(r"pip install --quiet --disable-pip-version-check (.*)", recipe)
    assert installs[0] == "--no-deps --require-hashes -r $(LOCK)"
    assert installs[1] == "--no-deps --no-build-isolation -e ."
    assert [install.split()[:2] for install in installs[2:]] == [["-e", '".[dev,$(VLLM)]"']]


def test_an_audit_looks_at_all_that_is_locked_and_at_what_is_not():
    recipe = (ROOT / "Makefile").read_text().split("\naudit:")[1].split("\n\n")[0]
    audits = re.findall(r"-m pip_audit (.*)", recipe)
    assert audits[0] == "--strict --disable-pip --no-deps --require-hashes -r $(LOCK)"
    assert '"$(TORCH)" "$(AUDITED_VLLM)" > $(VENV)/audited.txt' in recipe
    assert audits[1] == "--strict --disable-pip --no-deps --require-hashes -r $(DOCS_LOCK)"
    assert audits[2:] == ["--strict --disable-pip --no-deps -r $(VENV)/audited.txt"]
    (vllm,) = map(Requirement, OPTIONAL["vllm"])
    audited = re.search(r"^AUDITED_VLLM \?= vllm==(\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert audited is not None
    assert vllm.specifier.contains(audited[1])


@pytest.mark.parametrize("workflow", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(workflow):
    uses = re.findall(r"uses: (\S+)", workflow.read_text())
    assert uses
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", each) for each in uses)

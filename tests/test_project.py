"""What holds for the project's files rather than for its code."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEV = PYPROJECT["project"]["optional-dependencies"]["dev"]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
LINTERS = ["ruff", "mypy", "import-linter", "pre-commit"]
# Beside the rooms of `src/appo`: what all components of a kind must satisfy, values of the authors' release, what an
# adversary may try, by hand and by chance, and what lies outside of the package.
BESIDE_ROOMS = {"families", "properties", "parity", "security", "fuzz", "soak", "examples", "website"}


def test_every_test_stands_where_what_it_tests_stands():
    files = [path.relative_to(ROOT / "tests") for path in (ROOT / "tests").glob("*/**/test_*.py")]
    assert len(files) > 100
    for file in files:
        assert file.parts[0] in BESIDE_ROOMS or (ROOT / "src/appo" / file.parent).is_dir(), file


def test_hooks_before_a_commit_are_the_commands_of_make_lint():
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    commands = [line.removeprefix("\t$(BIN)/") for line in lint.splitlines()[1:]]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix(".venv/bin/") for hook in local["hooks"]]
    # Before a commit, ruff is given the files that changed, and mends what it can.
    assert hooks == ["ruff check --fix", "ruff format", *commands[2:]]
    assert commands[:2] == ["ruff check .", "ruff format --check ."]


def tree() -> list[list[str]]:
    """The folders of each line of the tree; one that is indented stands below the first of the line above."""
    lines, above = [], [""]
    for line in re.findall(r"^((?:  )*)((?:\w+/ *)+)", ARCHITECTURE.split("```")[1], re.MULTILINE):
        depth, names = len(line[0]) // 2, re.findall(r"\w+", line[1])
        del above[depth + 1 :]
        lines.append([above[depth] + name for name in names])
        above.append(lines[-1][0] + "/")
    return lines


def test_the_tree_of_the_architecture_has_every_folder():
    folders = (path.parent.relative_to(ROOT / "src/appo").as_posix() for path in (ROOT / "src/appo").glob("**/*.py"))
    assert {folder for line in tree() for folder in line} == {*folders} - {"."}


def test_the_tree_of_the_architecture_stands_in_the_order_of_the_layers():
    layers = PYPROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = [line for line in tree() if "/" not in line[0]]
    assert [set(line) for line in rooms] == [set(layer.split(" | ")) for layer in layers if layer != "__main__"]


def test_what_the_architecture_names_is_there():
    files = list((ROOT / "src/appo").glob("**/*.py"))
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    defined = {getattr(node, key) for node in nodes for key in ("name", "id", "arg") if hasattr(node, key)}
    defined |= {part for file in files for part in (file.stem, file.parent.name)}
    for name in re.findall(r"`([\w./]+)`", ARCHITECTURE):
        if "/" in name:
            places = (ROOT / "src/appo" / name, ROOT / "src/appo" / f"{name}.py", ROOT / name)
            assert any(place.exists() for place in places), name
        else:
            assert {*name.split(".")} <= defined, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_documentation_points_to_is_there(page):
    text = page.read_text()
    folders = "benchmarks|configs|docs|examples|notebooks|src|tests"
    places = [ROOT / path for path in re.findall(rf"`((?:{folders})/[\w./-]*)`", text)]
    places += [page.parent / link for link in re.findall(r"\]\(([\w./-]+)\)", text)]
    places += [ROOT / f"benchmarks/{name}.py" for name in re.findall(r"\bbenchmarks\.(\w+)", text)]
    assert [place for place in places if not place.exists()] == []


def test_the_readme_fits_a_screen_or_two():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(re.findall(r"^!\[", text, re.MULTILINE)) == 1


def test_the_architecture_is_read_in_one_go():
    assert len(ARCHITECTURE.splitlines()) <= 100


def test_every_page_stands_in_the_navigation_of_the_site():
    named = set(re.findall(r"[\w./-]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").glob("**/*.md")}
    assert pages - named == set()


def lines_to_wrap(text: str) -> list[str]:
    """Lines of more than 120 characters that could be broken: outside code, tables, and what has no space."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    whole = re.compile(r"`[^`]*`|\]\([^)]*\)")
    wide = [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]
    return [line for line in wide if " " in whole.sub("x", re.sub(r"^\s*([-*]|\d+\.)?\s+", "", line))]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_lines_of_documentation_are_wrapped(page):
    assert lines_to_wrap(page.read_text()) == []


def test_a_wide_line_is_found_where_it_can_be_broken():
    wide = "word " * 30
    assert lines_to_wrap(f"{wide}\n- {wide}\n") == [wide, f"- {wide}"]
    assert lines_to_wrap(f"```\n{wide}\n```\n| {wide} |\n- `{wide}`\n") == []


@pytest.mark.parametrize("linter", LINTERS)
def test_a_linter_has_one_version(linter):
    (pinned,) = [line for line in DEV if re.match(rf"{linter}\b", line)]
    assert re.fullmatch(rf"{linter}==[\d.]+", pinned)


def test_every_dependency_has_a_lower_and_an_upper_bound():
    project = PYPROJECT["project"]
    extras = [*project["optional-dependencies"].values(), *PYPROJECT["dependency-groups"].values()]
    for line in (*project["dependencies"], *(line for extra in extras for line in extra)):
        if not line.startswith("appo["):
            assert re.search(r"==", line) or (">=" in line and re.search(r"<\d", line)), line

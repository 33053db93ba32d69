"""The documentation names options as the command line does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from appo.commands.known_keys import check_keys

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
SECTIONS = ("model", "data", "rollout", "trainer")
NO_OPTIONS = {"data.md", "data.organic", "rollout.py", "trainer.fit"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_in_the_text_exists(page):
    text = page.read_text()
    # A command goes on over lines that end with a backslash.
    sft = re.compile(r"^\s*appo sft\b(?:.*\\\n)*.*", re.MULTILINE)
    check_keys("sft", [f"--{name}" for command in sft.findall(text) for name in names_in(command)])
    # The other options are those of `appo fit`, but for the page that is about `appo sft`.
    check_keys("sft" if page.stem == "sft" else "fit", [f"--{name}" for name in names_in(sft.sub("", text))])


def names_in(text: str) -> set[str]:
    names = re.findall(rf"(?<![\w/.])(?:{'|'.join(SECTIONS)})\.[a-z_]+(?:\.[a-z_]+)*", text)
    return {*names} - NO_OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_key_of_a_config_in_the_text_exists(page, tmp_path):
    for number, text in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        content = yaml.safe_load(text)
        if isinstance(content, dict) and {*content} & {*SECTIONS}:
            check_keys("fit", ["--config", str(path)])

"""The page of faults names tests that are there, and figures that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.soak.__main__ import RESULTS, summary

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs/faults.md").read_text(encoding="utf-8")


def test_every_fault_has_a_test_that_is_there():
    rows = [line for line in PAGE.splitlines() if re.match(r"\| (?!fault |-)", line)]
    assert len(rows) >= 30
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row.split(" | ")[-1])
        assert named or row.endswith("| same |"), row
        for file, test in named:
            assert f"\ndef {test}(" in (TESTS / file).read_text(encoding="utf-8"), (file, test)


def test_the_figures_of_the_page_are_those_of_the_soak():
    assert summary(json.loads(RESULTS.read_text())) in " ".join(PAGE.split())

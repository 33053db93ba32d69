"""The pages of faults and of what may change name tests that are there, and figures that were measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.soak.__main__ import RESULTS, summary

TESTS = Path(__file__).parents[1]
PAGE, RESUMING = ((TESTS.parent / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("faults", "reproducing"))


@pytest.mark.parametrize(("page", "least"), [(PAGE, 30), (RESUMING, 10)], ids=["faults", "resuming"])
def test_every_row_has_a_test_that_is_there(page, least):
    rows = [line for line in page.splitlines() if re.match(r"\| (?!fault |what has changed |-)", line)]
    assert len(rows) >= least
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row.split(" | ")[-1])
        assert named or row.endswith("| same |"), row
        for file, test in named:
            assert f"\ndef {test}(" in (TESTS / file).read_text(encoding="utf-8"), (file, test)


def test_the_figures_of_the_page_are_those_of_the_soak():
    assert summary(json.loads(RESULTS.read_text())) in " ".join(PAGE.split())

"""Notebooks as pages of the site."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest

from website.notebook_pages import notebook_page


def cell(source, *outputs):
    return {"cell_type": "code", "source": [source], "outputs": list(outputs)}


def written(tmp_path, *cells):
    path = tmp_path / "01_small.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path):
    picture = {"image/png": b64encode(b"png").decode(), "text/plain": ["<Figure>"]}
    title = {"cell_type": "markdown", "source": ["# Small\n", "\n", "Then `02_next`."]}
    shows = {"output_type": "display_data", "data": picture}
    path = written(tmp_path, title, cell("show()", {"output_type": "stream", "text": ["a\x02b\n", "````"]}, shows))
    fence = "`" * 8
    assert notebook_page(path) == (
        "# Small\n\nThen [`02_next`](02_next.md).\n\n"
        "*The cells of [`01_small.ipynb`](../repository/notebooks/01_small.ipynb), and what they print.*\n\n"
        f"{fence} python\nshow()\n{fence}\n\n"
        f"{fence} {{ .text .output }}\na\N{REPLACEMENT CHARACTER}b\n````\n{fence}\n\n"
        "![What the cell above draws](01_small_1.png)",
        {"01_small_1.png": b"png"},
    )


def test_an_output_that_cannot_be_shown_is_refused(tmp_path):
    path = written(tmp_path, cell("widget()", {"output_type": "display_data", "data": {"text/html": "<b>"}}))
    with pytest.raises(ValueError, match=r"must have one of image/png, text/plain, got \['text/html'\]"):
        notebook_page(path)

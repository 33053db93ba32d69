"""Turns a notebook with its outputs into a page of the site."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FENCE = "`" * 8
"""Longer than those that outputs have."""

_FORMATS = "image/png", "text/plain"
"""Of what a cell shows: the first that there is."""


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook in Markdown, and its pictures.

    Args:
        path: of the notebook, run and saved.

    Returns:
        The text of the page, and the content of its pictures by the names that the text has for them.

    Raises:
        ValueError: if an output has a format that is not known here, or is an error.
    """
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"`(\d\d_\w+)`", r"[`\1`](\1.md)", source))
            continue
        parts.append(_fenced("python", source))
        for shown in map(_shown, cell["outputs"]):
            if isinstance(shown, bytes):
                name = f"{path.stem}_{len(pictures) + 1}.png"
                pictures[name] = shown
                parts.append(f"![What the cell above draws]({name})")
            else:
                parts.append(_fenced("{ .text .output }", "".join(_printable(shown))))
    title, *rest = parts
    link = f"*The cells of [`{path.name}`](../repository/notebooks/{path.name}), and what they print.*"
    return "\n\n".join([title, link, *rest]), pictures


def _fenced(language: str, text: str) -> str:
    return f"{_FENCE} {language}\n{text.rstrip()}\n{_FENCE}"


def _shown(output: dict[str, Any]) -> str | bytes:
    """A picture, or else text."""
    if output["output_type"] == "stream":
        return "".join(output["text"])
    data = output.get("data", {})
    known = next((name for name in _FORMATS if name in data), None)
    if known is None:
        raise ValueError(f"an output of a notebook must have one of {', '.join(_FORMATS)}, got {list(data) or output}")
    content = "".join(data[known])
    return b64decode(content) if known.startswith("image/") else content


def _printable(text: str) -> Iterator[str]:
    """Its characters; those that a page cannot hold, such as control characters, are replaced."""
    for character in text:
        yield character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"

"""The page of the viewer: one HTML file of parts that lie beside this module, and what it may do."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from appo.commands.view.values import TOKEN_VALUES

_FOLDER = Path(__file__).parent
_LIBRARIES = ("vendor/htm-preact.umd.js", "vendor/uPlot.iife.min.js")
_PARTS = ("core", "forest", "tree", "text", "why", "list", "curves", "compare", "header", "app")
"""Scripts of the page, in the order in which they need each other."""

PALETTE = "page/palette.css"
"""Colors and type of every page, of this package."""

_STYLES = ("vendor/uPlot.min.css", PALETTE, "page/style.css")
_POLL_MS = 2000


def html_page(
    runs: Sequence[str], blocks: Mapping[str, bytes] | None = None, files: Mapping[str, str] | None = None
) -> str:
    """The page.

    Args:
        runs: names of runs.
        blocks: compressed JSON by key, which the page holds; None for a page that asks its server.
        files: of keys that it does not hold, the path of the file beside it.
    """
    served = blocks is None
    meta = {
        "served": served,
        "runs": list(runs),
        "files": dict(files or {}),
        "poll_ms": _POLL_MS,
        "values": [{key: getattr(value, key) for key in ("name", "label", "help", "scale")} for value in TOKEN_VALUES],
    }
    styles, scripts = _styles(), _scripts()
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            f'<meta http-equiv="Content-Security-Policy" content="{content_security_policy(served, bool(files))}">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<meta name="referrer" content="no-referrer">\n',
            f"<title>{escape(' | '.join(runs))} - appo view</title>\n",
            *(f"<style>{style}</style>\n" for style in styles),
            '</head>\n<body>\n<div id="app"></div>\n',
            f'<script type="application/json" id="meta">{_inert(meta)}</script>\n',
            *(
                f'<script type="text/plain" id="block:{escape(key)}">{b64encode(block).decode()}</script>\n'
                for key, block in (blocks or {}).items()
            ),
            *(f"<script>{script}</script>\n" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def content_security_policy(served: bool, has_files: bool) -> str:
    """What a browser lets the page do: run the scripts that it came with, which are told by their hashes.

    Args:
        served: whether it asks its server for data.
        has_files: whether it reads files beside it.
    """
    rules = {
        "default-src": ["'none'"],
        "script-src": [source_hash(script) for script in _scripts()] + (["file:"] if has_files else []),
        "style-src": [source_hash(style) for style in _styles()],
        "connect-src": ["'self'"] if served else ["'none'"],
    }
    return policy_of(rules)


def policy_of(rules: Mapping[str, Sequence[str]]) -> str:
    """A policy that allows what rules say, and neither forms nor another base of links."""
    rules = {**rules, "base-uri": ["'none'"], "form-action": ["'none'"]}
    return "; ".join(f"{name} {' '.join(values)}" for name, values in rules.items())


@cache
def _scripts() -> tuple[str, ...]:
    """Libraries, then the page's own parts as one script."""
    own = "\n".join((_FOLDER / f"page/{part}.js").read_text(encoding="utf-8") for part in _PARTS)
    return (*((_FOLDER / library).read_text(encoding="utf-8") for library in _LIBRARIES), f"(() => {{\n{own}\n}})();")


@cache
def _styles() -> tuple[str, ...]:
    return tuple((_FOLDER / style).read_text(encoding="utf-8") for style in _STYLES)


def source_hash(text: str) -> str:
    """What names a script or a style in a policy."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _inert(value: Any) -> str:
    """JSON that cannot end the element in which it stands."""
    return json.dumps(value).replace("<", "\\u003c")

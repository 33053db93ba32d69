"""A report as one HTML file that opens from disk: no script, no request, and text of strangers as text alone."""

from __future__ import annotations

import io
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import cache
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any

from appo.commands.drawing import tidy
from appo.commands.report.document import Block, Document, Example, Figure, Table, Text
from appo.commands.view.page import PALETTE, policy_of, source_hash

_HERE = Path(__file__).parent
_INCHES = (5.2, 2.9)
_MANY = 5
"""Columns that a narrow window holds at the common size."""
_PAPERS = {"light": "#1c2024", "dark": "#e6e8eb"}
"""Ink on each kind of paper, as in the palette of pages."""


def write_html(document: Document, path: Path) -> Path:
    """Writes the report.

    Args:
        document: that is written.
        path: of the file.

    Returns:
        The path.
    """
    style = _style()
    rules = {"default-src": ["'none'"], "style-src": [source_hash(style)], "img-src": ["data:"]}
    names = [f"s{number}" for number in range(len(document.sections))]
    links = (f'<a href="#{n}">{escape(s.title)}</a>' for n, s in zip(names, document.sections, strict=True))
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy_of(rules)}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="referrer" content="no-referrer">\n',
        f"<title>{escape(document.title)} - appo report</title>\n<style>{style}</style>\n</head>\n<body>\n",
        f"<header><h1>{escape(document.title)}</h1><nav>{''.join(links)}</nav></header>\n<main>\n",
    ]
    for name, section in zip(names, document.sections, strict=True):
        parts.append(f'<section id="{name}"><h2>{escape(section.title)}</h2>\n')
        parts += _grouped(section.blocks)
        parts.append("</section>\n")
    path.write_text("".join([*parts, "</main>\n</body>\n</html>\n"]), encoding="utf-8")
    return path


def _grouped(blocks: Sequence[Block]) -> Iterator[str]:
    """Blocks in order; those of a kind that follow each other, or a picture and its table, stand side by side."""
    kind = ""
    for block, following in zip_longest(blocks, blocks[1:]):
        new = {Table: "tables", Figure: "figures", Example: "examples"}.get(type(block), "")
        if isinstance(block, Figure) and isinstance(following, Table):
            new = "tables"
        if new != kind:
            yield ("</div>\n" if kind else "") + (f'<div class="{new}">\n' if new else "")
            kind = new
        yield _html(block)
    if kind:
        yield "</div>\n"


def _html(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{_with_code(text)}</p>\n"
        case Table():
            return _table(block)
        case Figure():
            return _figure(block)
        case Example():
            return _example(block)


def _table(table: Table) -> str:
    kinds = ["word" if number < table.num_words else "num" for number in range(len(table.columns))]
    lines = [
        "".join(f'<{tag} class="{kind}">{_with_code(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))
        for tag, cells in [("th", table.columns), *(("td", row) for row in table.rows)]
    ]
    head, *body = (f"<tr>{line}</tr>\n" for line in lines)
    size = "prose" if table.num_words > 2 else "plain many" if len(table.columns) > _MANY else "plain"
    return (
        f'<div class="wide"><table class="{size}"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>\n'
    )


def _figure(figure: Figure) -> str:
    light, dark = (_picture(figure, paper) for paper in _PAPERS)
    return (
        f"<figure><figcaption>{escape(figure.title)}</figcaption>"
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(figure.caption)}"></picture></figure>\n'
    )


def _example(example: Example) -> str:
    text = "".join(f'<span class="{kind}">{escape(text)}</span>' for kind, text in example.spans)
    there = f' <a href="{escape(example.link)}">see its tree</a>' if example.link else ""
    return (
        f"<article><h3>{escape(example.title)}{there}</h3><p><b>{escape(example.question)}</b></p>"
        f'<p class="quiet">{escape("; ".join(example.facts))}</p><pre dir="ltr">{text}</pre></article>\n'
    )


def _with_code(text: str) -> str:
    """Escaped; what stands between backticks is code, and an interval stays in one line."""
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\[[-+\d.e]+, [-+\d.e]+\]", r'<span class="interval">\g<0></span>', text)


def _picture(figure: Figure, paper: str) -> str:
    """An SVG on its paper as the address of a picture, equal for equal figures."""
    ink = _PAPERS[paper]
    colors = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink)
    settings: Any = {
        **colors,
        "svg.hashsalt": "appo",
        "svg.fonttype": "none",
        "legend.framealpha": 0.0,
        "font.size": 9.5,
    }
    # An extra that only figures need.
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(settings), io.BytesIO() as file:
        canvas = Canvas(figsize=_INCHES, layout="constrained")
        axes = canvas.add_subplot()
        axes.patch.set_alpha(0.0)
        figure.draw(axes)
        tidy(axes)
        canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return f"data:image/svg+xml;base64,{b64encode(file.getvalue()).decode()}"


@cache
def _style() -> str:
    palette = _HERE.parent / "view" / PALETTE
    return palette.read_text(encoding="utf-8") + (_HERE / "report.css").read_text(encoding="utf-8")

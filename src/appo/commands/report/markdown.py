"""A report in Markdown, for a terminal, a repository or a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from appo.commands.drawing import save_figure, tidy
from appo.commands.markdown import markdown_table
from appo.commands.report.document import Block, Document, Example, Figure, SpanKind, Table, Text

_PICTURE = "curves.png"
_SPECIAL = re.compile(r"([\\*<|&]|\](?=[(\[:]))")
"""What would be more than text: emphasis, HTML, cells of a table, links."""
_MARKS: dict[SpanKind, str] = {"mark": "⟦{}⟧", "result": "{}", "sampled": "{}", "shared": "{}"}


def write_markdown(document: Document, path: Path) -> Path:
    """Writes the report, and all of its figures as one picture beside it.

    Args:
        document: that is written.
        path: of the file.

    Returns:
        The path.
    """
    figures = document.figures
    if figures:
        _draw(figures, path.with_name(_PICTURE))
    lines = [f"# {plain(document.title)}", ""]
    has_picture = False
    for section in document.sections:
        lines += [f"## {plain(section.title)}", ""]
        for block in section.blocks:
            if isinstance(block, Figure):
                if not has_picture:
                    lines += [f"![curves]({_PICTURE})", ""]
                has_picture = True
                lines += [f"- {plain(block.caption)}"]
                continue
            if lines[-1].startswith("- "):
                lines.append("")
            lines += [*_lines(block), ""]
        if lines[-1].startswith("- "):
            lines.append("")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Text(text):
            yield plain(text)
        case Table(columns, rows, num_words):
            header, rule, *body = markdown_table(
                [plain(name) for name in columns], [[plain(cell) for cell in row] for row in rows]
            )
            yield header
            yield f"| {' | '.join(['---'] * num_words + ['---:'] * (len(columns) - num_words))} |"
            yield from body
            del rule
        case Example(title, question, facts, spans):
            yield f"**{plain(title)}**: {plain(' '.join(question.split()))}"
            yield ""
            yield "; ".join(map(plain, facts))
            yield ""
            text = "".join(_MARKS[kind].format(text) for kind, text in spans)
            fence = "`" * max(4, 1 + max(map(len, re.findall("`+", text)), default=0))
            yield from (fence, *text.split("\n"), fence)


def plain(text: str) -> str:
    """A text that Markdown shows as it is, but for what stands between backticks, which is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # one without a partner
        return _SPECIAL.sub(r"\\\1", text.replace("`", "'"))
    return "`".join(part.replace("|", "\\|") if i % 2 else _SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))


def _draw(figures: list[Figure], path: Path) -> None:
    rows = -(-len(figures) // 2)
    # An extra that only figures need.
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 3.0 * rows), layout="constrained")
    for number, figure in enumerate(figures, start=1):
        axes = canvas.add_subplot(rows, 2, number)
        axes.set_title(figure.title, fontsize="medium")
        figure.draw(axes)
        tidy(axes)
    save_figure(canvas, [path])

"""What a report is made of; Markdown and the page are both written from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SpanKind = Literal["sampled", "result", "shared", "mark"]
"""What a policy sampled, what was given to it, what a branch has from its parent, or the place where a branch left."""


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands between backticks is code."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text below the names of their columns.

    Attributes:
        columns: names of them.
        rows: as many cells as columns each.
        num_words: columns from the left that hold words, the others numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_words: int = 1


@dataclass(frozen=True)
class Figure:
    """A picture, drawn anew for each kind of paper.

    Attributes:
        title: what it shows.
        caption: a sentence for those who do not see it.
        draw: puts it into axes.
    """

    title: str
    caption: str
    draw: Callable[[Axes], None]


@dataclass(frozen=True)
class Example:
    """A trajectory as text.

    Attributes:
        title: why it was chosen.
        question: that was asked.
        facts: what is known of it, such as its reward.
        spans: kinds and texts, one behind the other.
        link: of the page of `appo view` that shows it; empty if there is none.
    """

    title: str
    question: str
    facts: Sequence[str]
    spans: Sequence[tuple[SpanKind, str]]
    link: str = ""


Block = Text | Table | Figure | Example


@dataclass(frozen=True)
class Section:
    """Blocks below a heading."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Document:
    """A report."""

    title: str
    sections: Sequence[Section]

    @property
    def figures(self) -> list[Figure]:
        """All of them, in order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]

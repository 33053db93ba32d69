"""What the figures of commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart by readers with any color vision. See "Color Universal Design" (https://jfly.uni-koeln.de/color/)."""


def tidy(axes: Axes) -> None:
    """A faint grid, and lines at the left and below alone."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Saves a figure; equal figures are equal files.

    Args:
        figure: as it is drawn.
        paths: of the pictures; their endings say the format.
    """
    # The picture is an extra that only reports need.
    from matplotlib import rc_context

    # Ids in an SVG are random otherwise, and text would be outlines.
    with rc_context({"svg.hashsalt": "appo", "svg.fonttype": "none"}):
        for path in paths:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)

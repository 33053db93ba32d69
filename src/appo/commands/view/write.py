"""A run as a file that opens from disk: ``view.html``, and files beside it where it would grow large."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

from appo.commands.view.page import html_page
from appo.commands.view.run import Run, packed

MAX_BYTES = 5_000_000
"""Of the page; what goes beyond lies in files beside it."""

_FILE_BYTES = 500_000
"""Compressed data from which on a file is full."""

_RESERVED = 400_000
"""For scripts, styles and what else is in the page beside data."""


def write_page(runs: Sequence[Run], path: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Writes the page of some runs, the last iteration of each first into the page itself.

    Args:
        runs: one, or two to be compared.
        path: of the page; what does not fit is written into a folder beside it, ``<name>_files``, whose scripts are
            replaced.
        max_bytes: of the page.

    Returns:
        The path.
    """
    folder = path.with_name(f"{path.stem}_files")
    for old in folder.glob("*.js"):
        old.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks: dict[str, bytes] = {}
    files: dict[str, str] = {}
    left = max_bytes - _RESERVED
    for name, group in _groups(runs):
        size = sum(4 * -(-len(block) // 3) + len(key) + 60 for key, block in group.items())
        if size <= left:
            blocks |= group
            left -= size
        else:
            folder.mkdir(exist_ok=True)
            script = json.dumps({key: b64encode(block).decode() for key, block in group.items()})
            (folder / f"{name}.js").write_text(f"appoPage({script});\n", encoding="utf-8")
            files |= dict.fromkeys(group, f"{folder.name}/{name}.js")
    path.write_text(html_page([run.name for run in runs], blocks, files), encoding="utf-8")
    return path


def _groups(runs: Sequence[Run]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Blocks that are kept together, by the name of their file, what is looked at first in front."""
    for number, run in enumerate(runs):
        yield f"{number}", {f"{number}/overview": packed(run.overview()), f"{number}/asked": packed(run.asked())}
    steps = [[(number, step) for step in run.steps()] for number, run in enumerate(runs)]
    # The last iteration of each run, then those before it; evaluations behind them.
    by_age = [sorted(of_run, key=lambda item: (item[1].stage != "iteration", -item[1].number)) for of_run in steps]
    for place in range(max(map(len, by_age))):
        for of_run in by_age:
            if place < len(of_run):
                number, step = of_run[place]
                yield from _step_groups(runs[number], f"{number}/{step.key}")


def _step_groups(run: Run, base: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    key, name = base.partition("/")[2], base.replace("/", "-")
    index = run.index(key)
    yield f"{name}-index", {f"{base}/index": packed(index)}
    group: dict[str, bytes] = {}
    for number in range(len(index["prompts"])):
        group[f"{base}/tree/{number}"] = packed(run.tree(key, number))
        if sum(map(len, group.values())) >= _FILE_BYTES:
            yield f"{name}-until-{number}", group
            group = {}
    if group:
        yield f"{name}-rest", group

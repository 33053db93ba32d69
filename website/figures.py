"""Draws the figures of ``docs/concepts.md`` from a run: ``python -m website.figures runs/gates docs/images``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from appo.monitoring.trajectory_files import read_trajectories

GOOD, BAD, QUIET, MARK = "#1f9e78", "#d1495b", "#c3c9d1", "#1f4fc4"

MOST_LINES = 18
"""Trajectories of a tree that can still be read."""

Record = dict[str, Any]


def main(run: Path, folder: Path) -> None:
    """Draws the question, of those with branches scored by a changed policy, whose branches fared most differently."""
    files = sorted((run / "trajectories").glob("iteration_*.jsonl.zst"))
    trees = [tree for file in files for tree in trees_of(list(read_trajectories(file)))]
    tree = max((tree for tree in trees if len(tree) <= MOST_LINES), key=lambda tree: (has_gain(tree), changes(tree)))
    mpl.rcParams |= {"svg.hashsalt": "appo", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    draw_tree(tree, folder / "concepts_tree.svg")
    draw_tokens(tree, folder / "concepts_tokens.svg")


def trees_of(records: Sequence[Record]) -> list[list[Record]]:
    """The trajectories of each prompt, roots first."""
    keyed = sorted(records, key=lambda record: (record["prompt"]["id"], record["id"]))
    return [list(group) for _, group in groupby(keyed, key=lambda record: record["prompt"]["id"])]


def changes(tree: Sequence[Record]) -> int:
    """Branches that another reward came of than of their parent."""
    rewards = {record["id"]: record["reward"] for record in tree}
    return sum(record["reward"] != rewards[record["parent_id"]] for record in tree if is_branch(record))


def has_gain(tree: Sequence[Record]) -> bool:
    """Whether the policy had changed since it sampled the roots."""
    return any(gain != 1.0 for record in tree if not is_branch(record) for gain in record["score_likelihood_gain"])


def is_branch(record: Record) -> bool:
    """Whether a trajectory left another one."""
    return record["branch_position"] is not None


def draw_tree(tree: Sequence[Record], file: Path) -> None:
    """Trajectories along their tokens: roots, and below each the branches that left it."""
    roots = [record for record in tree if not is_branch(record)]
    rows = [(root, [each for each in tree if each["parent_id"] == root["id"]]) for root in roots]
    figure, axes = plt.subplots(figsize=(9, 0.23 * len(tree) + 0.7))
    line = 0
    for number, (root, branches) in enumerate(rows, start=1):
        start = line
        draw_trajectory(axes, root, len(root["prompt"]["token_ids"]), line, f"root {number}")
        for branch in sorted(branches, key=lambda each: each["branch_position"]):
            line += 1
            fork = branch["branch_position"] + 0.5
            axes.plot([fork, fork], [start, line], color=QUIET, linewidth=1, zorder=1)
            axes.plot([fork], [start], "o", markersize=5, color="white", markeredgecolor=MARK, zorder=4)
            draw_trajectory(axes, branch, branch["branch_position"] + 1, line, "")
        line += 1
    axes.set(xlabel="token", ylim=(line - 0.3, -0.8), yticks=[])
    axes.spines["left"].set_visible(False)
    prompt = roots[0]["prompt"]
    axes.set_title(f"{prompt['question']}  Right: {prompt['answers'][0]}.", loc="left", fontsize=10)
    save(figure, file)


def draw_trajectory(axes: Axes, record: Record, start: int, line: int, name: str) -> None:
    """One trajectory from where its own tokens begin; what tools said is gray."""
    color = GOOD if record["reward"] >= 1.0 else BAD
    mask = record["response_mask"]
    for is_sampled, span in groupby(range(start, len(mask)), key=lambda position: bool(mask[position])):
        positions = list(span)
        axes.plot(
            [positions[0], positions[-1] + 1],
            [line, line],
            color=color if is_sampled else QUIET,
            linewidth=3 if is_sampled else 5,
            solid_capstyle="butt",
            zorder=2,
        )
    axes.plot([len(mask) + 1], [line], "o", markersize=4, color=color)
    axes.annotate(f"{record['reward']:g}", (len(mask) + 1, line), (6, 0), textcoords="offset points", va="center")
    if name:
        axes.annotate(name, (start, line), (-6, 0), textcoords="offset points", va="center", ha="right")


def draw_tokens(tree: Sequence[Record], file: Path) -> None:
    """Of the root with most branches, what each sampled token has: entropy, gain, score and advantage."""
    roots = [record for record in tree if not is_branch(record)]
    root = max(roots, key=lambda each: sum(record["parent_id"] == each["id"] for record in tree))
    forks = sorted({record["branch_position"] for record in tree if record["parent_id"] == root["id"]})
    positions = [position for position, is_sampled in enumerate(root["response_mask"]) if is_sampled]
    rows = {
        "entropy (nats)": root["entropies"],
        "likelihood gain": root["score_likelihood_gain"],
        "Branching Score": root["scores"],
        "advantage": root["advantages"],
    }
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 1.35 * len(rows)), sharex=True)
    for row, (name, values) in zip(axes, rows.items(), strict=True):
        base = 1.0 if name == "likelihood gain" else 0.0
        heights = [(values[position] if values[position] is not None else base) - base for position in positions]
        row.bar(positions, heights, bottom=base, width=0.9, color="#5b6b82")
        row.axhline(base, color=QUIET, linewidth=0.8)
        for fork in forks:
            row.axvline(fork + 1, color=MARK, linewidth=0.9, linestyle=":")
        row.set_ylabel(name.replace(" (", "\n("), rotation=0, ha="right", va="center")
    axes[-1].set_xlabel("token; dotted: drawn anew by branches; gaps: the prompt and what tools said")
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    """Writes a figure on white, so that it is read on a dark page, too."""
    figure.savefig(file, bbox_inches="tight", facecolor="white", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

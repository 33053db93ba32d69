"""What a run has learned, for people: a table, a reward curve and a few trajectories with their branch points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from appo.monitoring.history import read_evaluation, read_history, smoothed

SavedTrajectory = dict[str, Any]
"""A line of a file of trajectories."""

Decode = Callable[[Sequence[int]], str]
"""The text of token ids."""

TABLE = {
    "accuracy": "accuracy",
    "reward": "reward",
    "f1": "token F1",
    "format": "well-formed answers",
    "tool_calls": "tool calls",
    "response_length": "response length (tokens)",
    "finished": "finished",
}
"""Rows of the table: name of the metric, and what a person calls it."""

CURVES = {"rollout/reward_initial_mean": "reward, initial trajectories", "rollout/accuracy": "accuracy"}
"""Lines of the picture: key of the metric, and what a person calls it."""

BRANCH_MARK = "⟦branch {number}⟧"
"""Stands in the text of a trajectory behind the last token that a branch shares with it."""


def write_report(run: Path, before: Path, after: Path, num_questions: int = 3) -> Path:
    """Writes ``report.md`` and ``reward.png`` into the folder of a run.

    Args:
        run: folder of an ``appo fit``.
        before: folder of an ``appo test`` of the policy it started from.
        after: folder of an ``appo test`` of the policy it ended with.
        num_questions: of which trajectories are shown as text, from the last iteration whose trajectories were saved.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: if a folder does not hold what such a run writes.
    """
    history, evaluations = read_history(run), [read_evaluation(folder) for folder in (before, after)]
    files = sorted((run / "trajectories").glob("iteration_*.jsonl.zst"))
    if not files:
        raise FileNotFoundError(f"no trajectories/iteration_*.jsonl.zst in {run}; was rollout.save_trajectories off?")
    # Large, and not needed to say that a folder is wrong.
    from appo.commands.report.decisions import decision_section
    from appo.monitoring.trajectory_files import read_trajectories
    from appo.policy.loading import load_tokenizer
    from appo.policy.text import decode

    decode_ids = partial(decode, load_tokenizer(str(run / "policy")))
    shown = branched_texts(list(read_trajectories(files[-1])), decode_ids, num_questions)
    plot_rewards(history, run / "reward.png")
    report = "\n".join(
        [
            f"# {run.name}",
            "",
            *comparison_table(*evaluations),
            "",
            "![reward](reward.png)",
            "",
            *decision_section(run, before, after, decode_ids),
            f"## Trajectories of {files[-1].name.split('.')[0].replace('_', ' ')}",
            "",
            *(line for text in shown for line in text),
        ]
    )
    path = run / "report.md"
    path.write_text(report + "\n", encoding="utf-8")
    return path


def comparison_table(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """A Markdown table of two evaluations, by line; accuracy is broken down by source."""
    rows = [(label, f"test/{name}") for name, label in TABLE.items()]
    prefix = "test/accuracy/"
    rows += [(f"accuracy: {name.removeprefix(prefix)}", name) for name in sorted(after) if name.startswith(prefix)]
    lines = ["| | before | after |", "|---|---:|---:|"]
    for label, name in rows:
        if name in before and name in after:
            lines.append(f"| {label} | {before[name]:.3g} | {after[name]:.3g} |")
    return lines


def plot_rewards(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws reward and accuracy of the initial trajectories over iterations."""
    # The picture is an extra that only the report needs.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, label in CURVES.items():
        points = [(row["epoch"], row[name]) for row in history if name in row]
        axes.plot([x for x, _ in points], smoothed([y for _, y in points]), label=label)
        axes.scatter([x for x, _ in points], [y for _, y in points], s=6, alpha=0.35)
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def branched_texts(trajectories: Sequence[SavedTrajectory], decode: Decode, number: int) -> list[list[str]]:
    """Of some questions, as Markdown: a branched root with its branches and theirs, and the root most unlike it.

    First come questions with a root whose branches' rewards lie farthest apart; of each the root is taken of which that
    is true. Then comes the root whose reward is farthest from its own.

    Args:
        trajectories: of one iteration.
        decode: by the policy's tokenizer.
        number: how many questions.
    """
    branches: defaultdict[int, list[SavedTrajectory]] = defaultdict(list)
    rewards: defaultdict[int, list[float]] = defaultdict(list)
    roots: defaultdict[str, list[SavedTrajectory]] = defaultdict(list)
    root_of: dict[int, int] = {}
    for trajectory in trajectories:
        if (parent := trajectory["parent_id"]) is None:
            root_of[trajectory["id"]] = trajectory["id"]
            roots[trajectory["prompt"]["id"]].append(trajectory)
        else:
            root = root_of[trajectory["id"]] = root_of[parent]
            branches[parent].append(trajectory)
            rewards[root].append(trajectory["reward"])

    def spread_and_number(root: SavedTrajectory) -> tuple[float, int]:
        of_branches = rewards[root["id"]]
        return (max(of_branches) - min(of_branches) if of_branches else -1.0), len(of_branches)

    parents = [max(of_question, key=spread_and_number) for of_question in roots.values()]
    texts = []
    for parent in sorted(parents, key=spread_and_number, reverse=True)[:number]:
        prompt = parent["prompt"]
        lines = [f"**{prompt['question']}** (answer: {' or '.join(prompt['answers'])})", ""]
        lines += _branched_text(parent, "", branches, decode)
        others = [root for root in roots[prompt["id"]] if root is not parent]
        if others:
            other = max(others, key=lambda root: abs(root["reward"] - parent["reward"]))
            lines += _fenced(f"another root, reward {other['reward']:.2f}", decode(_response(other)))
        texts.append(lines)
    return texts


def _branched_text(
    trajectory: SavedTrajectory, name: str, branches: Mapping[int, Sequence[SavedTrajectory]], decode: Decode
) -> list[str]:
    """A root or what a branch has of its own, with a mark at each point, and behind it what left there.

    Args:
        trajectory: a root, or a branch.
        name: of a branch: the second one that leaves branch 3 is branch 3.2. Empty for a root.
        branches: that left a trajectory, by its id.
        decode: by the policy's tokenizer.
    """
    token_ids, start = trajectory["token_ids"], len(trajectory["prompt"]["token_ids"])
    title, text = f"reward {trajectory['reward']:.2f}", ""
    if name:
        start = trajectory["branch_position"] + 1
        title, text = f"branch {name}, score {trajectory['branch_score']:.2f}, {title}", "..."
    own = sorted(branches.get(trajectory["id"], ()), key=lambda branch: branch["branch_position"])
    named = {f"{name}.{number}" if name else str(number): branch for number, branch in enumerate(own, start=1)}
    for number, branch in named.items():
        end = branch["branch_position"] + 1
        text += decode(token_ids[start:end]) + BRANCH_MARK.format(number=number)
        start = end
    lines = _fenced(title, text + decode(token_ids[start:]))
    for number, branch in named.items():
        lines += _branched_text(branch, number, branches, decode)
    return lines


def _fenced(title: str, text: str) -> list[str]:
    fence = "`" * 4
    return [f"{title}:", fence, *text.replace(fence, "'" * 4).split("\n"), fence, ""]


def _response(trajectory: SavedTrajectory) -> list[int]:
    return list(trajectory["token_ids"][len(trajectory["prompt"]["token_ids"]) :])

"""Trajectories of a question as Markdown: each with a mark where a branch left, and the branches behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from appo.commands.report.examples import Decode
from appo.commands.report.records import SavedTrajectory

BRANCH_MARK = "⟦branch {number}⟧"
"""Stands in the text of a trajectory behind the last token that a branch shares with it."""


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

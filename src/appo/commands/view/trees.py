"""What a viewer is told of a step, and of the tree of one prompt: plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from appo.commands.view.exclusions import Exclusions
from appo.commands.view.steps import Saved
from appo.commands.view.texts import TokenTexts
from appo.commands.view.values import own_values

Json = dict[str, Any]

HIDDEN = "\N{MIDDLE DOT}"
"""Stands for a token whose text may not be kept."""


def step_index(trees: Mapping[str, Sequence[Saved]]) -> Json:
    """What lists and filters need of a step: its prompts in order, and of each trajectory a line.

    Args:
        trees: trajectories by the id of their prompt.
    """
    return {
        "prompts": [
            {
                "id": prompt,
                "question": trajectories[0].record["prompt"]["question"],
                "source": trajectories[0].record["prompt"]["source"],
                "trajectories": [_summary(trajectory) for trajectory in trajectories],
            }
            for prompt, trajectories in trees.items()
        ]
    }


def _summary(trajectory: Saved) -> Json:
    record = trajectory.record
    calls = record["tool_calls"]
    return {
        "id": trajectory.id,
        "parent": trajectory.parent,
        "reward": record.get("reward"),
        "accuracy": (record.get("reward_parts") or {}).get("accuracy"),
        "length": len(trajectory) - trajectory.prompt_length,
        "finish": record["finish_reason"],
        "tools": sorted({call["tool"] for call in calls}),
        "failures": sorted({call["failure"] for call in calls if call["failure"] is not None}),
    }


def tree_page(trajectories: Sequence[Saved], texts: TokenTexts, exclusions: Exclusions | None) -> Json:
    """All there is of one prompt's trees.

    A trajectory has the tokens that it does not share with its parent alone. `texts` are distinct ones, `tokens` their
    numbers; `runs` are ranges of positions that were not sampled, such as tool results.

    Args:
        trajectories: of the prompt, branches behind their parents.
        texts: of tokens.
        exclusions: why tokens were no branch points; None where none were chosen.
    """
    prompt = trajectories[0].record["prompt"]
    numbers: dict[str, int] = {}
    is_public = trajectories[0].token_ids is not None
    reasons, of_trajectory = {}, [""] * len(trajectories)
    if exclusions is not None and is_public and any("scores" in t.columns for t in trajectories):
        reasons = exclusions.of_tokens(trajectories)
        of_trajectory = exclusions.of_trajectories(trajectories)
    nodes = []
    for row, trajectory in enumerate(trajectories):
        node = _node(trajectory, texts, numbers)
        if reasons and "scores" in trajectory.columns:
            bits = sum(mask[row].numpy().astype(np.int64) << i for i, mask in enumerate(reasons.values()))
            node["excluded"] = bits[trajectory.first_own : len(trajectory)].tolist()  # type: ignore[index]  # an array
        node["closed"] = of_trajectory[row]
        nodes.append(node)
    _mark_chosen(nodes, {trajectory.id: trajectory for trajectory in trajectories})
    return {
        "prompt": {
            **{key: prompt[key] for key in ("id", "question", "answers", "source")},
            "text": "".join(texts(prompt["token_ids"])) if is_public else None,
        },
        "texts": list(numbers),
        "reasons": list(reasons),
        "trajectories": nodes,
    }


def _node(trajectory: Saved, texts: TokenTexts, numbers: dict[str, int]) -> Json:
    record, first = trajectory.record, trajectory.first_own
    own = slice(first, len(trajectory))
    if trajectory.token_ids is None:
        words = [HIDDEN] * (len(trajectory) - first)
    else:
        words = texts(trajectory.token_ids[own].tolist())
    return {
        "id": trajectory.id,
        "parent": trajectory.parent,
        "start": first - trajectory.prompt_length,
        "reward": record.get("reward"),
        "parts": record.get("reward_parts") or {},
        "reason": record.get("reward_reason") or "",
        "finish": record["finish_reason"],
        "score": record["branch_score"],
        "calls": [
            {**call, "position": call["position"] - trajectory.prompt_length}
            for call in record["tool_calls"]
            if call["position"] >= first
        ],
        "tokens": [numbers.setdefault(word, len(numbers)) for word in words],
        "given": _runs(~trajectory.is_sampled[own], first - trajectory.prompt_length),
        "values": own_values(trajectory),
    }


def _runs(mask: Any, start: int) -> list[list[int]]:
    """Ranges of positions, end exclusive, in which a mask is True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
    return [[int(a) + start, int(b) + start] for a, b in edges.reshape(-1, 2)]


def _mark_chosen(nodes: Sequence[Json], saved: Mapping[int, Saved]) -> None:
    """Tells of each branch which token of its parent the scorer chose: the first that differs, or the last shared."""
    for node in nodes:
        if node["parent"] is None:
            continue
        parent, behind = saved[node["parent"]], saved[node["id"]].first_own
        scores = parent.columns.get("scores")
        is_last_shared = (
            scores is not None
            and node["score"] is not None
            and not (behind < len(parent) and np.isclose(scores[behind], node["score"], rtol=1e-4))
            and bool(np.isclose(scores[behind - 1], node["score"], rtol=1e-4))
        )
        node["chosen"] = node["start"] - int(is_last_shared)

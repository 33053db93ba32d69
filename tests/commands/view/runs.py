"""Folders of runs, written by hand: trees of which every number is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from appo.monitoring.trajectory_files import TrajectoryWriter

CONFIG = """
model: {{policy: {policy}}}
rollout:
  branching: {{num_trajectories: 4, num_roots: 2, min_entropy: 0.5, exclude: [whitespace, tags]}}
  limits: {{max_response_tokens: 20}}
  rewards: {{truncated: penalize}}
"""
METRICS = "epoch,rollout/reward_initial_mean,rollout/accuracy,rollout/sampling_s\n0,0.1,0.2,3.0\n1,0.5,0.6,2.0\n"
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\x1b]0;owned\x07"
"""A text that would run, had a page taken it for HTML, and would retitle a terminal that was sent it."""


def record(
    row: int,
    prompt: dict[str, Any],
    response: list[int],
    reward: float,
    given: Iterable[int] = (),
    parent: int | None = None,
    position: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A line of a file of trajectories.

    Args:
        row: its id.
        prompt: as a file has it.
        response: token ids.
        reward: of it.
        given: positions of the response that were not sampled.
        parent: id, of a branch.
        position: last one that a branch shares, counted with the prompt.
        **more: further keys, those of every token for the response alone.
    """
    given, start = set(given), len(prompt["token_ids"])
    mask = [0] * start + [int(i not in given) for i in range(len(response))]
    columns = {
        name: [0.0] * start + list(value)
        for name, value in more.items()
        if isinstance(value, list) and name != "tool_calls"
    }
    return {
        "id": row,
        "parent_id": parent,
        "prompt": prompt,
        "text": "",
        "segments": [],
        "tool_calls": [],
        "finish_reason": "eos",
        "branch_position": position,
        "branch_score": None,
        "token_ids": [*prompt["token_ids"], *response],
        "response_mask": mask,
        "behavior_log_probs": [-0.5 * sampled for sampled in mask],
        "policy_versions": [sampled - 1 for sampled in mask],
        "reward": reward,
        "reward_parts": {"accuracy": reward},
        "reward_reason": "",
        **more,
        **columns,
    }


def prompt(tokenizer: Any, question: str, name: str = "q") -> dict[str, Any]:
    """A prompt as a file has it."""
    token_ids = tokenizer.encode(question, add_special_tokens=False)
    return {
        "id": name,
        "question": question,
        "token_ids": token_ids,
        "answers": ["ann"],
        "source": "s",
        "is_public": True,
    }


def write_run(folder: Path, policy: Path, files: dict[str, list[dict[str, Any]]]) -> Path:
    """The folder of a run.

    Args:
        folder: of it.
        policy: whose tokenizer it has.
        files: records by the name of their file, such as ``iteration_00000``.
    """
    version = folder / "csv/version_0"
    version.mkdir(parents=True)
    (version / "config.yaml").write_text(CONFIG.format(policy=policy))
    (version / "metrics.csv").write_text(METRICS)
    for name, records in files.items():
        write_file(folder, name, records)
    return folder


def write_file(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    """Adds a file of trajectories to a run."""
    with TrajectoryWriter(folder / f"trajectories/{name}.jsonl.zst") as writer:
        writer.write(records)


def family(tokenizer: Any, question: str = "who is it?", name: str = "q", first: int = 0) -> list[dict[str, Any]]:
    """Two roots of different reward, and two branches of the first, the second of which left the first.

    The first root calls a tool: `a b` was sampled, `R` given, then `c d` was sampled.
    """

    def ids(text: str) -> list[int]:
        found = tokenizer.encode(text, add_special_tokens=False)
        assert len(found) == len(text)
        return found

    asked = prompt(tokenizer, question, name)
    start = len(asked["token_ids"])
    call = {"tool": "search", "argument": "x", "result": "R", "failure": None, "duration_s": 0.5, "position": start + 2}
    failed = {**call, "tool": "python", "failure": "timeout"}
    scored = {
        "advantages": [2.0, 2.0, 0.0, 1.5, 1.0],
        "old_log_probs": [-0.5, -0.25, 0.0, -1.0, -0.5],
        "entropies": [0.25, 2.0, 0.0, 1.0, 0.75],
        "scores": [-1.0, 3.0, None, 1.0, 0.5],
        "score_likelihood_gain": [1.0, 1.125, 1.0, 0.875, 1.0],
        "tool_calls": [call],
    }
    own = {"advantages": [1.0] * 4, "tool_calls": [failed]}
    return [
        record(first, asked, ids("abRcd"), 1.0, [2], **scored),
        record(first + 1, asked, ids("ab"), 0.0, finish_reason="length", advantages=[-1.0, -1.0]),
        record(first + 2, asked, ids("axSe"), 0.0, [2], first, start, branch_score=3.0, **own),
        record(first + 3, asked, ids("axSf"), 1.0, [2], first + 2, start + 2, branch_score=1.0, **own),
    ]

"""Trajectories on disk: one JSON object a line, compressed with Zstandard."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from appo.core.trajectory import BranchPoint, Prompt, RewardResult, Segment, ToolCall, Trajectory

Record = dict[str, Any]


def trajectory_record(
    trajectory: Trajectory, result: RewardResult | None = None, per_token: Mapping[str, Tensor] | None = None
) -> Record:
    """All that is known of a trajectory, in types that JSON has.

    Args:
        trajectory: a root or a branch; a branch names its parent by `parent_id`, which the writer of several
            records fills in.
        result: its reward, if it has been rewarded.
        per_token: ``[T]`` further values by name, such as `entropies` or `scores`; what is not finite becomes null.
    """
    prompt, origin = trajectory.prompt, trajectory.origin
    record: Record = {
        "prompt": {**_shown(prompt), "token_ids": list(prompt.token_ids), "answers": list(prompt.answers)},
        "text": trajectory.text,
        "segments": [vars(segment) for segment in trajectory.segments],
        "tool_calls": [vars(call) for call in trajectory.tool_calls],
        "finish_reason": trajectory.finish_reason,
        "cached_tokens": trajectory.cached_tokens,
        "reusable_tokens": trajectory.reusable_tokens,
        "reused_tokens": trajectory.reused_tokens,
        "invented_results": trajectory.invented_results,
        "branch_position": None if origin is None else origin.position,
        "branch_score": None if origin is None else origin.score,
        "token_ids": trajectory.token_ids.tolist(),
        "response_mask": trajectory.response_mask.int().tolist(),
        "behavior_log_probs": trajectory.behavior_log_probs.tolist(),
        "policy_versions": trajectory.policy_versions.tolist(),
    }
    if trajectory.sampling_log_probs is not None:
        record["sampling_log_probs"] = trajectory.sampling_log_probs.tolist()
    if result is not None:
        record |= {"reward": result.reward, "reward_parts": dict(result.parts), "reward_reason": result.reason}
    for name, values in (per_token or {}).items():
        finite = values.isfinite().tolist()
        record[name] = [value if ok else None for value, ok in zip(values.tolist(), finite, strict=True)]
    return record


def _shown(prompt: Prompt) -> Record:
    """All fields but the columns of the row, which may be large, or no JSON."""
    return {name: value for name, value in vars(prompt).items() if name != "columns"}


def significant(values: NDArray[Any], digits: int) -> NDArray[np.float64]:
    """Rounds to some significant digits, such that numbers print as short as they can.

    Args:
        values: finite.
        digits: that are kept of numbers below ``10**digits``; larger ones become whole.
    """
    values = values.astype(np.float64)
    magnitude = np.floor(np.log10(np.abs(values), where=values != 0.0, out=np.zeros_like(values)))
    # Powers of ten up to 10**22 are exact, so what is divided by one prints as short as it can.
    scale = 10.0 ** np.clip(digits - 1 - magnitude, 0, 22)
    rounded: NDArray[np.float64] = np.round(values * scale) / scale
    return rounded


def without_text(record: Record) -> Record:
    """What may be kept of a trajectory whose prompt is not public.

    Left are ids, the rewards, why it ended, which tools were called and how that went, and what is measured a token.
    Question, answers, response, token ids, arguments and results of tools, and reasons, which quote answers, are null.
    `trajectory_from_record` cannot read it.

    Args:
        record: by `trajectory_record`.
    """
    prompt: Record = record["prompt"]
    return {
        **record,
        "prompt": prompt | dict.fromkeys(("question", "token_ids", "answers")),
        "tool_calls": [call | dict.fromkeys(("argument", "result")) for call in record["tool_calls"]],
        **dict.fromkeys(key for key in ("text", "segments", "token_ids", "reward_reason") if key in record),
    }


def trajectory_from_record(record: Record, origin: BranchPoint | None = None) -> Trajectory:
    """The trajectory that `trajectory_record` wrote down.

    Args:
        record: of one trajectory.
        origin: the branch point, if it is a branch.
    """
    prompt, log_probs = record["prompt"], record.get("sampling_log_probs")
    return Trajectory(
        prompt=Prompt(**{**prompt, "token_ids": tuple(prompt["token_ids"]), "answers": tuple(prompt["answers"])}),
        token_ids=torch.tensor(record["token_ids"]),
        response_mask=torch.tensor(record["response_mask"], dtype=torch.bool),
        behavior_log_probs=torch.tensor(record["behavior_log_probs"]),
        policy_versions=torch.tensor(record["policy_versions"]),
        segments=tuple(Segment(**segment) for segment in record["segments"]),
        tool_calls=tuple(ToolCall(**call) for call in record["tool_calls"]),
        finish_reason=record["finish_reason"],
        origin=origin,
        cached_tokens=record["cached_tokens"],
        reusable_tokens=record["reusable_tokens"],
        reused_tokens=record["reused_tokens"],
        invented_results=record.get("invented_results", 0),  # files of earlier versions have none
        sampling_log_probs=None if log_probs is None else torch.tensor(log_probs),
    )


class TrajectoryWriter:
    """Writes records to a ``.jsonl.zst`` file that appears under its name only once it is whole.

    Args:
        path: of the file; folders above it are made, a file of that name is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> TrajectoryWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._file = io.TextIOWrapper(zstandard.open(self._partial, "wb"), encoding="utf-8")
        return self

    def write(self, records: Iterable[Record]) -> None:
        """Appends records, a line each."""
        for record in records:
            self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None:
            os.replace(self._partial, self.path)


def append_trajectories(path: Path, records: Iterable[Record], at: int) -> int:
    """Adds records to a file that several processes, one after the other, write.

    Args:
        path: of the file; folders above it are made.
        records: that are added, a line each.
        at: bytes of the file that are whole; what a killed process has left behind them is overwritten.

    Returns:
        Bytes of the file that are whole now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    path.touch()
    with path.open("r+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(zstandard.compress(lines.encode()))
        return file.tell()


def read_trajectories(path: Path) -> Iterator[Record]:
    """The records of a file that `TrajectoryWriter` or `append_trajectories` wrote, in order.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    return map(json.loads, trajectory_lines(path))


def trajectory_lines(path: Path) -> Iterator[str]:
    """The records as they are written, a line each.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        io.TextIOWrapper(stream, encoding="utf-8") as lines,
    ):
        yield from lines

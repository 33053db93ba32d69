"""The files of trajectories of a run, and the trajectories in them as a viewer needs them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appo.monitoring.trajectory_files import Record, read_trajectories, trajectory_lines

Column = NDArray[np.float32]
"""``[T]`` one value a token, prompt included; NaN where there is none."""

_NAME = re.compile(r"(iteration|validation|test|predict)_(\d{5,})(?:_rank_\d{5,})?\.jsonl\.zst")
_PROMPT = re.compile(r'"prompt": \{"id": ("(?:[^"\\]|\\.)*")')
_PLACE = {"iteration": 0, "validation": 1, "test": 2, "predict": 3}


@dataclass(frozen=True)
class Step:
    """What one iteration, validation, test or prediction has written.

    Attributes:
        stage: which of these.
        number: of the iteration.
        paths: a file for each process.
    """

    stage: str
    number: int
    paths: tuple[Path, ...]

    @property
    def key(self) -> str:
        """Names it in a run."""
        return f"{self.stage}-{self.number}"

    @property
    def version(self) -> tuple[tuple[int, int], ...]:
        """Changes when a file is written anew."""
        return tuple((stat.st_mtime_ns, stat.st_size) for stat in (path.stat() for path in self.paths))


@dataclass(frozen=True, eq=False)
class Saved:
    """A trajectory of a file.

    Attributes:
        id: within the step, whatever process has written it.
        parent: id of the trajectory that a branch left; None for a root.
        record: what `trajectory_record` wrote, but for what is measured a token.
        token_ids: ``[T]`` int64; None where the prompt is not public.
        is_sampled: ``[T]`` bool.
        columns: by name, whatever else is there of every token.
    """

    id: int
    parent: int | None
    record: dict[str, Any]
    token_ids: NDArray[np.int64] | None
    is_sampled: NDArray[np.bool_]
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.is_sampled)

    @property
    def first_own(self) -> int:
        """The first token that was sampled for it, or stands behind the prompt of a root."""
        return self.prompt_length if self.parent is None else int(self.record["branch_position"]) + 1

    @property
    def prompt_length(self) -> int:
        """Tokens before the response; without them, those before the first that was sampled."""
        token_ids = self.record["prompt"]["token_ids"]
        return int(self.is_sampled.argmax()) if token_ids is None else len(token_ids)


def steps_of(run: Path) -> list[Step]:
    """What a run has written so far: iterations in order, each before its validation, then test and prediction.

    Raises:
        FileNotFoundError: if there is nothing.
    """
    found: defaultdict[tuple[str, int], list[Path]] = defaultdict(list)
    for path in sorted((run / "trajectories").glob("*.jsonl.zst")):
        if match := _NAME.fullmatch(path.name):
            found[match[1], int(match[2])].append(path)
    if not found:
        raise FileNotFoundError(
            f"run must be the folder of an appo fit or test with trajectories/*.jsonl.zst, got {str(run)!r}; "
            "was rollout.save_trajectories off, or no iteration finished?"
        )
    steps = [Step(stage, number, tuple(paths)) for (stage, number), paths in found.items()]
    return sorted(steps, key=lambda step: (_PLACE[step.stage] // 2, step.number, _PLACE[step.stage]))


def read_step(step: Step) -> list[Saved]:
    """All trajectories of a step; ids of several files are made unique."""
    return list(map(_saved, records_of(step)))


def records_of(step: Step) -> Iterator[Record]:
    """The lines of a step's files, branches behind their parents; ids of several files are made unique."""
    first = 0
    for path in step.paths:
        number = 0
        for record in read_trajectories(path):
            parent = record["parent_id"]
            yield {**record, "id": record["id"] + first, "parent_id": None if parent is None else parent + first}
            number += 1
        first += number


def prompt_ids(step: Step) -> list[str]:
    """The ids of the prompts of a step, each once; faster than to read all of it."""
    found: dict[str, None] = {}
    for path in step.paths:
        for line in trajectory_lines(path):
            if match := _PROMPT.search(line):
                found[json.loads(match[1])] = None
    return list(found)


def by_prompt(trajectories: list[Saved]) -> dict[str, list[Saved]]:
    """Trajectories by the id of their prompt, in the order of the files: branches behind their parents."""
    groups: dict[str, list[Saved]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.record["prompt"]["id"], []).append(trajectory)
    return groups


def _saved(record: Record) -> Saved:
    is_sampled = np.array(record.pop("response_mask"), dtype=bool)
    token_ids = record.pop("token_ids")
    # Nulls stand for what is not finite; numpy makes NaN of them.
    columns = {
        name: np.array(record.pop(name), dtype=np.float32)
        for name in [name for name, value in record.items() if _is_column(value, len(is_sampled))]
    }
    return Saved(
        id=record["id"],
        parent=record["parent_id"],
        record=record,
        token_ids=None if token_ids is None else np.array(token_ids, dtype=np.int64),
        is_sampled=is_sampled,
        columns=columns,
    )


def _is_column(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and isinstance(value[0], int | float | None)

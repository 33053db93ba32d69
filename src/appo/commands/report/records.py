"""What a report needs of a run's files of trajectories: read once, and only numbers of all but the last iteration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from appo.commands.view.steps import Step, records_of, steps_of

SavedTrajectory = dict[str, Any]
"""A line of a file of trajectories."""

Visit = Callable[[Sequence[SavedTrajectory]], None]
"""Counts what it wants to know of an iteration."""

Values = dict[str, dict[str, float]]
"""The mean of a metric over the trajectories of a question, by the name of the metric and the id of the question."""

ROOTS, BRANCHES = "reward of roots", "reward of branches"
"""Names of what is measured of a part of the trajectories alone."""


@dataclass(frozen=True)
class Branch:
    """What became of a branch.

    Attributes:
        depth: share of its parent's response that it shares.
        gain: its reward minus that of its parent.
        is_echo: whether it repeats its parent's ending token for token.
    """

    depth: float
    gain: float
    is_echo: bool


@dataclass
class Summary:
    """What is counted of trajectories.

    Attributes:
        number: of them.
        calls: of tools that they made themselves, by tool.
        failures: of these calls, by kind.
        endings: how they ended, by reason.
        worthless: trajectories that came to their end and have the lowest reward of all.
        invented: results of tools that the policy wrote itself.
    """

    number: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    invented: int = 0
    _finished: list[float] = field(default_factory=list)
    _lowest: float = float("inf")

    def add(self, record: SavedTrajectory) -> None:
        """Counts a trajectory, without what a branch shares with its parent."""
        self.number += 1
        for call in record["tool_calls"]:
            if call["position"] > (-1 if record["branch_position"] is None else record["branch_position"]):
                self.calls[call["tool"] or "none"] += 1
                if call["failure"] is not None:
                    self.failures[call["failure"]] += 1
        self.endings[record["finish_reason"]] += 1
        self.invented += record.get("invented_results", 0)
        if (reward := record.get("reward")) is not None:
            self._lowest = min(self._lowest, reward)
            if record["finish_reason"] == "eos":
                self._finished.append(reward)

    @property
    def worthless(self) -> int:
        """See `Attributes`."""
        return self._finished.count(self._lowest)


@dataclass
class RunRecords:
    """The trajectories of a training.

    Attributes:
        values: of each iteration, by its number.
        branches: of all iterations.
        summary: of all trajectories.
        last: those of the last iteration.
        last_step: names it.
    """

    values: dict[int, Values] = field(default_factory=dict)
    branches: list[Branch] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)
    last: list[SavedTrajectory] = field(default_factory=list)
    last_step: str = ""

    @classmethod
    def read(cls, run: Path, visit: Visit = lambda records: None) -> RunRecords:
        """Of the folder of a run; empty if it kept none.

        Args:
            run: the folder.
            visit: is given the trajectories of each iteration, which are not kept.
        """
        found = cls()
        iterations = [step for step in steps_in(run) if step.stage == "iteration"]
        for step in iterations:
            records = list(records_of(step))
            visit(records)
            found.values[step.number] = question_values(records)
            found.branches += branches_of(records)
            for record in records:
                found.summary.add(record)
            if step is iterations[-1]:
                found.last, found.last_step = records, step.key
        return found


def steps_in(folder: Path) -> list[Step]:
    """As `steps_of`, and nothing where there is nothing."""
    try:
        return steps_of(folder)
    except FileNotFoundError:
        return []


def measures(record: SavedTrajectory) -> dict[str, float]:
    """What is measured of a trajectory that was rewarded; nothing of another."""
    if (reward := record.get("reward")) is None:
        return {}
    start = len(record["prompt"]["token_ids"] or ())
    return {
        **(record.get("reward_parts") or {}),
        "reward": reward,
        ROOTS if record["parent_id"] is None else BRANCHES: reward,
        "response_length": float(len(record["response_mask"]) - (start or record["response_mask"].index(1))),
        "tool_calls": float(len(record["tool_calls"])),
        "finished": float(record["finish_reason"] == "eos"),
    }


def question_values(records: Iterable[SavedTrajectory]) -> Values:
    """The means of what is measured over the trajectories of each question."""
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for name, value in measures(record).items():
            found[name][record["prompt"]["id"]].append(value)
    return {name: {key: fmean(each) for key, each in of_question.items()} for name, of_question in found.items()}


def branches_of(records: Sequence[SavedTrajectory]) -> list[Branch]:
    """All branches of an iteration whose rewards are known."""
    by_id: Mapping[int, SavedTrajectory] = {record["id"]: record for record in records}
    found = []
    for record in records:
        if record["parent_id"] is None or record.get("reward") is None:
            continue
        parent, behind = by_id[record["parent_id"]], record["branch_position"] + 1
        start = len(parent["prompt"]["token_ids"])
        depth = (behind - start) / (len(parent["token_ids"]) - start)
        is_echo = record["token_ids"][behind:] == parent["token_ids"][behind:]
        found.append(Branch(depth, record["reward"] - parent["reward"], is_echo))
    return found

"""What the policy could do before the training and behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from appo.commands.ablate.statistics import Estimate, estimate
from appo.commands.report.document import Block, Section, Table, Text
from appo.commands.report.records import Summary, Values, question_values, steps_in
from appo.commands.view.steps import Step, records_of
from appo.monitoring.history import read_evaluation

ROWS = {
    "accuracy": "accuracy",
    "reward": "reward",
    "f1": "token F1",
    "format": "well-formed answers",
    "tool_calls": "tool calls",
    "response_length": "response length (tokens)",
    "finished": "finished",
}
"""Metrics that are compared, and what a person calls them."""

_OF_SOURCE = "accuracy/"


@dataclass(frozen=True)
class Side:
    """An evaluation.

    Attributes:
        name: of the column.
        means: of metrics, by name.
        values: of questions; empty if the trajectories were not kept.
        summary: of the trajectories; None if they were not kept.
        folder: of the ``appo test``; None for a validation.
    """

    name: str
    means: Mapping[str, float]
    values: Values
    summary: Summary | None = None
    folder: Path | None = None

    def estimate(self, name: str) -> Estimate | None:
        """The mean of a metric over questions with its interval; None if it was not measured."""
        of_question = self.values.get(name)
        return estimate(list(of_question.values())) if of_question else None


def sides_of(run: Path, before: Path | None, after: Path | None) -> tuple[Side, Side] | None:
    """The two evaluations of a run: tests, else its first and last validation; None if it has neither.

    Args:
        run: its folder.
        before: folder of an ``appo test`` of the policy it started from. None: ``before`` in the run's, if it is one.
        after: likewise, of the policy it ended with.

    Raises:
        FileNotFoundError: if a folder that was given holds no test.
        ValueError: if there is one of them alone.
    """
    folders = [
        given or (run / name if (run / name / "test.json").is_file() else None)
        for name, given in (("before", before), ("after", after))
    ]
    if folders[0] is not None and folders[1] is not None:
        return _test(folders[0], "before"), _test(folders[1], "after")
    if before or after:
        raise ValueError(f"before and after must be given together, got {before or after} alone")
    validations = [step for step in steps_in(run) if step.stage == "validation"]
    if len(validations) > 1:
        first, last = validations[0], validations[-1]
        return _side([first], f"iteration {first.number}"), _side([last], f"iteration {last.number}")
    return None


def _test(folder: Path, name: str) -> Side:
    means = {key.removeprefix("test/"): value for key, value in read_evaluation(folder).items()}
    found = _side([step for step in steps_in(folder) if step.stage == "test"][-1:], name)
    return Side(name, means, found.values, found.summary, folder)


def _side(steps: Iterable[Step], name: str) -> Side:
    records = [record for step in steps for record in records_of(step)]
    summary = Summary()
    for record in records:
        summary.add(record)
    values = question_values(records)
    means = {metric: sum(each.values()) / len(each) for metric, each in values.items()}
    return Side(name, means, values, summary if records else None)


def comparison_section(sides: tuple[Side, Side] | None) -> Section:
    """Both sides with intervals, and the difference on the questions that both were asked."""
    if sides is None:
        text = (
            "The run has no evaluation to compare: `appo test` of the policy before and behind it, given as `--before` "
            "and `--after` or left in `before/` and `after/` of its folder, or validations while it trains "
            "(`trainer.check_val_every_n_epoch`). The curves below are of other questions in every iteration."
        )
        return Section("Before and after", [Text(text)])
    before, after = sides
    blocks: list[Block] = [_table(before, after)]
    tested = next((name for name in ("accuracy", "reward") if _difference(before, after, name)), None)
    if tested is not None and (difference := _difference(before, after, tested)) is not None:
        number = len(difference.values)
        blocks.append(
            Text(
                f"{ROWS[tested].capitalize()} on the {number} questions that both were asked: {_signed(difference)}, "
                f"{_p(difference.p)} by a paired t test. A question counts once, with the mean over its trajectories; "
                "brackets are 95 % intervals over questions."
            )
        )
    else:
        blocks.append(Text("There is no paired test: the trajectories of both on the same questions were not kept."))
    return Section("Before and after", blocks)


def _table(before: Side, after: Side) -> Table:
    names = [*ROWS, *sorted(name for name in after.means if name.startswith(_OF_SOURCE))]
    rows: list[Sequence[str]] = []
    for name in names:
        if name in before.means and name in after.means:
            label = ROWS.get(name) or f"accuracy: {name.removeprefix(_OF_SOURCE)}"
            difference = _difference(before, after, name)
            change = after.means[name] - before.means[name]
            rows.append(
                (
                    label,
                    _interval(before.means[name], before.estimate(name)),
                    _interval(after.means[name], after.estimate(name)),
                    _number(change, "+") if difference is None else _signed(difference),
                )
            )
    return Table(["", before.name, after.name, "change"], rows)


def _difference(before: Side, after: Side, name: str) -> Estimate | None:
    """Behind minus before, question by question; None where none was asked twice."""
    first, second = before.values.get(name, {}), after.values.get(name, {})
    common = [key for key in first if key in second]
    return estimate([second[key] - first[key] for key in common]) if common else None


def _interval(mean: float, found: Estimate | None) -> str:
    if found is None or isnan(found.low):
        return _number(mean)
    return f"{_number(found.mean)} [{_number(found.low)}, {_number(found.high)}]"


def _signed(found: Estimate) -> str:
    interval = "" if isnan(found.low) else f" [{_number(found.low, '+')}, {_number(found.high, '+')}]"
    return _number(found.mean, "+") + interval


def _number(value: float, sign: str = "") -> str:
    """Three digits, and no more than three behind the point; nothing here is measured more finely."""
    return f"{round(value, 3) + 0.0:{sign}.3g}"


def _p(p: float) -> str:
    return "no p of a single question" if isnan(p) else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

"""Watches a run by the rules of a healthy one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

from appo.monitoring.health_rules import RULES, WINDOW, Row, Rule


@dataclass
class Finding:
    """A rule that spoke, and for how long.

    Attributes:
        rule: of it.
        value: the mean over `WINDOW` iterations when it began.
        first: iteration in which it began.
        last: iteration in which it still held.
        is_open: whether it holds in the last iteration that was looked at.
    """

    rule: Rule
    value: float
    first: int
    last: int
    is_open: bool = True

    @property
    def message(self) -> str:
        """One line of plain text for a log."""
        rule = self.rule
        told = f"{rule.name}: {rule.metric} is {self.value:.3g}, {rule.condition}: {rule.means}; try {rule.advice}"
        return told.replace("`", "")


@dataclass
class HealthMonitor:
    """Looks at iterations as they come; a rule speaks once, and again only after a whole window in which it held.

    Attributes:
        rules: that are looked at.
        findings: all so far, in the order in which they began.
    """

    rules: Iterable[Rule] = RULES
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._recent: dict[str, list[float]] = {}
        self._starts: dict[str, list[float]] = {}

    def update(self, iteration: int, row: Row) -> list[Finding]:
        """Takes in the metrics of an iteration.

        Returns:
            What began with it.
        """
        begun = []
        for rule in self.rules:
            value = self._value(rule, row)
            if value is None or value != value:
                continue
            recent = self._recent[rule.name] = [*self._recent.get(rule.name, ()), value][-WINDOW:]
            current = next((each for each in self.findings if each.is_open and each.rule is rule), None)
            is_broken = len(recent) == WINDOW and rule.is_broken_by(fmean(recent))
            if current is not None:
                current.is_open = any(map(rule.is_broken_by, recent))
                current.last = iteration if is_broken else current.last
            elif is_broken:
                begun.append(Finding(rule, fmean(recent), iteration, iteration))
        self.findings += begun
        return begun

    def _value(self, rule: Rule, row: Row) -> float | None:
        value = rule.value_of(row)
        if value is None or not rule.is_relative:
            return value
        start = self._starts.setdefault(rule.name, [])
        if len(start) < WINDOW:
            start.append(value)
        return value / fmean(start) if fmean(start) > 0.0 else None


def findings_of(history: Iterable[Row]) -> list[Finding]:
    """What the rules have to say of a run.

    Args:
        history: metrics of every iteration, as of `read_history`.
    """
    monitor = HealthMonitor()
    for row in history:
        monitor.update(int(row["epoch"]), row)
    return monitor.findings

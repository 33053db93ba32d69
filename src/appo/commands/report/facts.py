"""What was trained, with what, for how much; what went wrong; and what the rules of a healthy run say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from appo.commands.report.charts import branches_figure
from appo.commands.report.comparison import Side
from appo.commands.report.document import Block, Section, Table, Text
from appo.commands.report.records import Branch, RunRecords, Summary
from appo.commands.view.curves import seconds_by_phase
from appo.monitoring.health import findings_of
from appo.monitoring.health_rules import WINDOW

History = Sequence[Mapping[str, float]]

_SHOWN = {
    "policy": ("model.policy",),
    "questions": ("data.source",),
    "method": ("rollout.scorer", "rollout.advantage", "model.loss"),
    "reward": ("rollout.reward",),
    "tools": ("rollout.tools",),
    "engine": ("rollout.engine",),
    "optimizer": ("model.optimizer",),
    "seed": ("seed_everything",),
}
"""Keys of the config that say what was trained, and with what."""

_BRANCHING = ("num_roots", "num_trajectories", "siblings", "when", "train_on", "parents", "min_entropy", "rounds")
"""Keys of `rollout.branching` that are shown."""

_FIFTHS = 5


def training_section(path: Path, config: DictConfig, history: History) -> Section:
    """What the config and the metrics of a run say of it.

    Args:
        path: of the config.
        config: of the run.
        history: metrics of every iteration.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    rows = [
        (label, ", ".join(filter(None, (_name(_find(plain, key)) for key in keys)))) for label, keys in _SHOWN.items()
    ]
    branching = _find(plain, "rollout.branching") or {}
    rows.append(("branching", ", ".join(f"{key} {_name(branching[key])}" for key in _BRANCHING if key in branching)))
    number = _name(_find(plain, "data.prompts_per_iteration"))
    rows.append(("iterations", f"{len(history)}" + (f", of {number} prompts each" if number else "")))
    rows.append(("config", str(path)))
    known = [row for row in rows if row[1]]
    blocks = [Table(["", "what was trained, and with what"], known, num_words=2), *_costs(history)]
    return Section("The training", blocks)


def _find(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _name(node: Any) -> str:
    """A value as a person writes it: a component by its class and the first of its options."""
    if isinstance(node, Mapping) and "class_path" in node:
        options = node.get("init_args") or {}
        plain = [f"{key} {value}" for key, value in options.items() if isinstance(value, str | int | float)]
        return str(node["class_path"]).rpartition(".")[2] + (f" ({', '.join(plain[:3])})" if plain else "")
    if isinstance(node, Mapping):
        return ", ".join(f"{key} {_name(value)}" for key, value in node.items())
    if isinstance(node, list):
        return ", ".join(map(_name, node)) or "none"
    return "" if node is None else str(node)


def _costs(history: History) -> list[Block]:
    seconds = sum(row.get("rollout/iteration_s", 0.0) for row in history)
    quantities = [
        ("sampled tokens", _total(history, "rollout/generated_tokens")),
        ("trained tokens", _total(history, "train/tokens")),
        ("tool calls", _total(history, "rollout/calls_made")),
        ("branches", _total(history, "rollout/branches_made")),
        ("seconds", seconds),
    ]
    rows = [(name, f"{total:,.0f}", f"{total / len(history):,.1f}") for name, total in quantities if total is not None]
    peaks = [row["rollout/peak_memory_gib"] for row in history if "rollout/peak_memory_gib" in row]
    if peaks:
        rows.append(("peak memory (GiB)", f"{max(peaks):.2f}", "-"))
    phases = [
        (label, f"{total:,.1f}", f"{total / seconds:.1%}" if seconds else "-")
        for name, label in seconds_by_phase(history)
        if (total := _total(history, name)) is not None
    ]
    blocks: list[Block] = [Table(["what it took", "in all", "an iteration"], rows)]
    return [*blocks, Table(["phase", "seconds", "share"], phases)] if phases else blocks


def _total(history: History, name: str) -> float | None:
    values = [row[name] for row in history if name in row]
    return sum(values) if values else None


def health_section(history: History) -> Section:
    """What the rules said, what still holds first."""
    findings = sorted(findings_of(history), key=lambda finding: not finding.is_open)
    text = f"Each rule looks at the mean over {WINDOW} iterations; `docs/healthy_run.md` has all of them."
    if not findings:
        return Section("What to try next", [Text(f"No rule of a healthy run has spoken. {text}")])
    rows = [
        (
            finding.rule.name,
            f"{finding.first} to {finding.last}" + (", still" if finding.is_open else ""),
            f"`{finding.rule.metric}` {finding.value:.3g}, {finding.rule.condition}",
            finding.rule.means,
            finding.rule.advice,
        )
        for finding in findings
    ]
    table = Table(["rule", "iterations", "what it saw", "what it means", "what to try"], rows, num_words=5)
    return Section("What to try next", [table, Text(text)])


def branches_section(records: RunRecords, decisions: Iterable[Block]) -> Section:
    """Where branches left, and what they earned.

    Args:
        records: of the run.
        decisions: what is known of the tokens that decide.
    """
    branches = records.branches
    if not branches:
        return Section("Branches", [Text("No branch was kept."), *decisions])
    rows = []
    for part in range(_FIFTHS):
        found = [each for each in branches if min(_FIFTHS - 1, int(_FIFTHS * each.depth)) == part]
        if found:
            rows.append(_branch_row(f"{part / _FIFTHS:.0%} to {(part + 1) / _FIFTHS:.0%}", found, len(branches)))
    rows.append(_branch_row("all", branches, len(branches)))
    columns = ["left at", "branches", "share", "earned more", "the same", "less", "mean gain", "echoes"]
    text = (
        "A branch shares a part of its parent's response and goes on by itself; what it earned is its reward compared "
        "with its parent's. An echo repeats its parent's ending token for token."
    )
    return Section("Branches", [Text(text), branches_figure(branches), Table(columns, rows), *decisions])


def _branch_row(name: str, branches: Sequence[Branch], number: int) -> list[str]:
    gains = [branch.gain for branch in branches]
    shares = [
        sum(test) / len(branches) for test in ([g > 0 for g in gains], [g == 0 for g in gains], [g < 0 for g in gains])
    ]
    echoes = sum(branch.is_echo for branch in branches) / len(branches)
    return [
        name,
        str(len(branches)),
        f"{len(branches) / number:.1%}",
        *(f"{share:.1%}" for share in shares),
        f"{sum(gains) / len(gains):+.3f}",
        f"{echoes:.1%}",
    ]


def failures_section(training: Summary, sides: tuple[Side, Side] | None) -> Section:
    """What went wrong, by kind: in training, before it and behind it."""
    columns = {"training": training} if training.number else {}
    columns |= {side.name: side.summary for side in sides or () if side.summary is not None}
    if not columns:
        return Section("Failures", [Text("No trajectories were kept.")])
    rows: list[Sequence[str]] = [("trajectories", *(f"{each.number:,}" for each in columns.values()))]
    endings = sorted({name for each in columns.values() for name in each.endings if name != "eos"})
    rows += [(f"cut off: {name}", *(_of(s.endings[name], s.number) for s in columns.values())) for name in endings]
    rows.append(("came to an end with the lowest reward", *(_of(s.worthless, s.number) for s in columns.values())))
    rows.append(("results of tools that the policy wrote", *(_of(s.invented, s.number) for s in columns.values())))
    rows.append(("tool calls", *(f"{s.calls.total():,}" for s in columns.values())))
    kinds = sorted({name for each in columns.values() for name in each.failures})
    rows += [
        (f"calls that failed: {name}", *(_of(s.failures[name], s.calls.total()) for s in columns.values()))
        for name in kinds
    ]
    return Section("Failures", [Table(["", *columns], rows)])


def _of(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "-"

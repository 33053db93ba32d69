"""Runs the steps one after the other, prints a line for each, and writes all of it as JSON."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from appo.commands.doctor.process import run_step
from appo.commands.doctor.result import Figure, Machine, Result
from appo.commands.doctor.steps import STEPS, Step

_INDENT = " " * 6


def main(args: Sequence[str]) -> int:
    """Checks this machine.

    Args:
        args: of the command.

    Returns:
        The exit code: 1 if a step has failed; of ``--security``, what `attack_walls` returns.
    """
    options = _parser().parse_args(args)
    if options.list:
        sys.stdout.write("".join(f"{step.name:<16}{step.title}\n" for step in STEPS))
        return 0
    if options.security is not None:
        from appo.commands.doctor.security import attack_walls

        return attack_walls(options.security, Path(options.out) if options.out else None)
    folder = Path(options.out or tempfile.mkdtemp(prefix="appo-doctor-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    machine = Machine(options.device, folder)
    started = monotonic()
    results: list[Result] = []
    for step in options.only or STEPS:
        limit_s = step.limit_s if options.limit_s is None else min(step.limit_s, options.limit_s)
        results.append(run_step(step, machine, limit_s))
        sys.stdout.write(_describe(step, results[-1]))
        sys.stdout.flush()
        # After every step: who ends the doctor has what was found until then.
        _write(folder / "doctor.json", options.device, results, monotonic() - started)
    counts = {status: sum(result.status == status for result in results) for status in ("PASS", "FAIL", "SKIP")}
    sys.stdout.write(
        f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped "
        f"in {monotonic() - started:.0f} s; {folder / 'doctor.json'}\n"
    )
    return int(counts["FAIL"] > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("appo doctor", description="Checks whether this machine can train, step by step.")
    parser.add_argument("--device", default="auto", help="as torch names it; auto takes a GPU if there is one")
    parser.add_argument("--only", type=_steps, metavar="STEP,STEP", help="these steps alone; see --list")
    parser.add_argument("--out", metavar="FOLDER", help="for doctor.json, logs and runs; a temporary one by default")
    parser.add_argument("--limit-s", type=float, help="seconds that a step may take; its own limit holds too")
    parser.add_argument(
        "--security",
        nargs="?",
        const="",
        metavar="PART",
        help="runs no step, but attacks the walls of the Python tool: all attacks, or those with PART in their names; "
        "exits with 0 if every one was kept off, with 1 if not, with 3 if the machine gives no wall",
    )
    parser.add_argument("--list", action="store_true", help="names the steps, and runs none")
    return parser


def _steps(names: str) -> list[Step]:
    by_name = {step.name: step for step in STEPS}
    if unknown := [name for name in names.split(",") if name not in by_name]:
        raise argparse.ArgumentTypeError(f"must name steps of --list, got {', '.join(unknown)}")
    return [by_name[name] for name in names.split(",")]


def _describe(step: Step, result: Result) -> str:
    lines = [f"{result.status}  {step.name:<16}{result.seconds:7.1f} s  {step.title}"]
    lines += [f"{_INDENT}{name} {_text(value)}" for name, value in result.figures.items()]
    lines += [f"{_INDENT}{text}" for text in (result.message, result.advice and f"-> {result.advice}") if text]
    return "\n".join(lines) + "\n"


def _text(value: Figure) -> str:
    if isinstance(value, list):
        return " ".join(_text(each) for each in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(path: Path, device: str, results: list[Result], seconds: float) -> None:
    report = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "device": device,
        "seconds": round(seconds, 1),
        "steps": [asdict(result) for result in results],
    }
    path.write_text(json.dumps(report, indent=2) + "\n")

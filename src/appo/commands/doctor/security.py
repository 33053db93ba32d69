"""Attacks the walls of the Python tool on this machine and says what has held."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from appo.tools.python.attacks import attacks_on
from appo.tools.python.attacks.attack import SETTINGS, harm_of, staged
from appo.tools.python.client import Interpreter, NoWallError
from appo.tools.python.sandbox.settings import Wall

ALL_HELD, ONE_GOT_THROUGH, NO_WALL = 0, 1, 3
"""Exit codes."""
_WALLS: tuple[Wall, ...] = ("namespaces", "landlock")


def attack_walls(part: str, folder: Path | None) -> int:
    """Makes every attack against each wall that the machine gives, and prints a line for each.

    Args:
        part: of the names of the attacks that are made; empty makes all.
        folder: for ``security.json``; None writes none.

    Returns:
        `ALL_HELD`, `ONE_GOT_THROUGH`, or `NO_WALL` if the machine gives none.
    """
    report: dict[str, dict[str, str]] = {}
    missing: dict[str, str] = {}
    for wall in _WALLS:
        try:
            interpreter = Interpreter(replace(SETTINGS, wall=wall))
        except NoWallError as error:
            missing[wall] = str(error)
            continue
        try:
            report[wall] = dict(_made(interpreter, wall, part))
        finally:
            interpreter.stop()
    harms = {wall: sum(map(bool, found.values())) for wall, found in report.items()}
    sys.stdout.write(_summary(report, harms, missing))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "security.json").write_text(json.dumps({"walls": report, "missing": missing}, indent=2) + "\n")
    if not report:
        return NO_WALL
    return ONE_GOT_THROUGH if any(harms.values()) else ALL_HELD


def _made(interpreter: Interpreter, wall: Wall, part: str) -> Iterator[tuple[str, str]]:
    """Names of the attacks that were made, and what has got through."""
    for attack in attacks_on(wall):
        if part not in attack.name:
            continue
        # Each finds what the others have not touched.
        with staged() as scene:
            harm = harm_of(attack, interpreter, scene)
        sys.stdout.write(f"{'THROUGH' if harm else 'held':<8}{wall:<12}{attack.name}{harm and f': {harm}'}\n")
        sys.stdout.flush()
        yield attack.name, harm


def _summary(report: dict[str, dict[str, str]], harms: dict[str, int], missing: dict[str, str]) -> str:
    lines = [
        f"{wall}: {len(found) - harms[wall]} of {len(found)} attacks held" + (", runs use it" if first else "")
        for (wall, found), first in zip(report.items(), (True, False), strict=False)
    ]
    lines += [f"{wall}: not on this machine ({reason})" for wall, reason in missing.items()]
    if not report:
        lines.append("no wall: runs end at their start unless require_isolation is false (docs/security.md)")
    return "\n".join(lines) + "\n"

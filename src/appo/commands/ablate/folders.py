"""What a folder says of the run that it holds, and whether that is the one that is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appo.commands.ablate.runs import Run

SPECIFICATION = "specification.json"
"""File of a run's folder that holds its full configuration."""

_MOST_DIFFERENCES = 5


def check_folder(run: Run) -> None:
    """Makes sure that the folder of a run is new, or holds what the same run has left there.

    Raises:
        ValueError: if it holds something else.
    """
    if not run.folder.exists() or not any(run.folder.iterdir()):
        return
    if not (run.folder / SPECIFICATION).exists():
        raise ValueError(f"out must not hold foreign files, got {run.folder} without a {SPECIFICATION}")
    found = read_specification(run.folder)
    if found != run.specification:
        raise ValueError(
            f"out must hold runs of the same specification, got {run.folder} with another one: "
            f"{differences(found or {}, run.specification)}"
        )


def read_specification(folder: Path) -> dict[str, Any] | None:
    """The specification of the run that `folder` holds; none if it holds none."""
    path = folder / SPECIFICATION
    if not path.exists():
        return None
    specification: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return specification


def write_specification(folder: Path, specification: Mapping[str, Any]) -> None:
    """Marks `folder` as that of a run; in one step, so that a killed process leaves no half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{SPECIFICATION}.draft"
    draft.write_text(json.dumps(specification, indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / SPECIFICATION)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The options in which two specifications differ, with both values."""
    absent = object()
    keys = [key for key in sorted({*found, *wanted}) if found.get(key, absent) != wanted.get(key, absent)]
    texts = [
        f"{key} is {json.dumps(found[key]) if key in found else 'absent'} there, "
        f"{json.dumps(wanted[key]) if key in wanted else 'absent'} here"
        for key in keys[:_MOST_DIFFERENCES]
    ]
    if len(keys) > _MOST_DIFFERENCES:
        texts.append(f"and {len(keys) - _MOST_DIFFERENCES} options more")
    return "; ".join(texts)

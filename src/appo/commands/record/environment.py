"""On what a run runs: code, packages, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import appo
from appo.commands.installed import ABSENT, OPTIONAL, dependencies, installed_version

_GIT_S = 10.0
"""Seconds that one question to git may take; a repository on a slow disk is then left out."""


def environment() -> dict[str, Any]:
    """What may change what a run computes, beside its config and its data."""
    return {
        "appo": appo.__version__,
        "git": _repositories(),
        "python": platform.python_version(),
        "packages": {name: found for name in (*dependencies(), *OPTIONAL) if (found := _found(name))},
        "hardware": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        },
        "threads": torch.get_num_threads(),
    }


def _found(name: str) -> str | None:
    found = installed_version(name)
    return None if found == ABSENT else found


def _processor() -> str:
    """As the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _repositories() -> dict[str, dict[str, Any]]:
    """State of the repositories that the run is started in, and that this package is in, by folder."""
    folders = {_git(folder, "rev-parse", "--show-toplevel") for folder in (Path.cwd(), Path(appo.__file__).parent)}
    return {folder: _state(Path(folder)) for folder in sorted(folder for folder in folders if folder)}


def _state(folder: Path) -> dict[str, Any]:
    changes = _git(folder, "diff", "HEAD") or ""
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard") or ""
    return {
        "commit": _git(folder, "rev-parse", "HEAD"),
        "changes": sha256(changes.encode()).hexdigest() if changes else None,
        "untracked": untracked.splitlines(),
    }


def _git(folder: Path, *args: str) -> str | None:
    """What git says; None where there is no git or no repository."""
    command = ["git", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None

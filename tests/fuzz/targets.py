"""All targets by name, and the inputs that have found something."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from tests.fuzz.target import Input, Target

_MODULES = {
    "normalizer": "texts",
    "graders": "texts",
    "calls": "texts",
    "channel": "channel",
    "rows": "files",
    "strangers": "files",
}
NAMES = tuple(_MODULES)
_CORPUS = Path(__file__).with_name("corpus")


def target_named(name: str) -> Target:
    """The target of a name; only what it needs is imported."""
    module = importlib.import_module(f"tests.fuzz.{_MODULES[name]}")
    (target,) = (target for target in module.TARGETS if target.name == name)
    return target


def corpus(name: str) -> list[Input]:
    """The inputs that have found something in a target once, smallest possible."""
    path = _CORPUS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

"""``appo config explain KEY``: what an option is, where it belongs, and what the recipes make of it."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import yaml

from appo.commands.keys import SKIPPED, Described, component_names, described, keys_of
from appo.commands.known_keys import check_keys
from appo.commands.recipes import FOLDER, recipe_names

_COMMAND = "fit"
_WIDTH = 110
_MOST_RECIPES = 8


def explain(key: str) -> str:
    """What is known of an option of ``appo fit``.

    Args:
        key: dotted, such as `rollout.branching.min_entropy`, or the end of one, such as `min_entropy`.

    Returns:
        Lines for a terminal.

    Raises:
        SystemExit: if there is none, after a line that says which may be meant.
    """
    names = list(keys_of(_COMMAND))
    plain = ".".join(part for part in key.lstrip("-").split(".") if part not in SKIPPED)
    found = [plain] if plain in names else [name for name in names if name.endswith(f".{plain}")]
    if not found:
        check_keys(_COMMAND, [f"--{plain}"])
        found = [plain]  # of a component that only a config can name
    return "\n\n".join(map(_explained, found))


def _explained(key: str) -> str:
    rows: list[tuple[str, str]] = []
    for each in described(_COMMAND, key):
        rows += _rows(each)
    if len(names := component_names(_COMMAND, key)) > 1:
        rows.append(("classes", ", ".join(names)))
    if below := [name.removeprefix(f"{key}.") for name in keys_of(_COMMAND) if name.startswith(f"{key}.")]:
        rows.append(("options", ", ".join(name for name in below if "." not in name)))
    rows.append(("recipes", _in_recipes(key)))
    return "\n".join([key, *(_row(name, text) for name, text in rows)])


def _rows(found: Described) -> list[tuple[str, str]]:
    rows = [
        ("of", f"{found.owner.name} ({found.owner.module})"),
        ("type", found.type or "not said"),
        ("default", found.default or "none: it must be given"),
    ]
    return [*rows, *([("help", found.help)] if found.help else [])]


def _row(name: str, text: str) -> str:
    first, *rest = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join([f"  {name:<9}{first}", *(f"  {'':<9}{line}" for line in rest)])


def _in_recipes(key: str) -> str:
    """The values that recipes give an option, each with the recipes that do."""
    by_value: defaultdict[str, list[str]] = defaultdict(list)
    for name in recipe_names():
        content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        if (value := _value(content, key.split("."))) is not None:
            by_value[str(value)].append(name)
    if not by_value:
        return "none sets it"
    return "; ".join(f"{value} in {_some(names)}" for value, names in by_value.items())


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_RECIPES
    return ", ".join(names[:_MOST_RECIPES]) + (f" and {more} more" if more > 0 else "")


def _value(content: Any, path: list[str]) -> Any:
    """A plain value, or the class of a component; None where there is neither."""
    for name in path:
        content = content.get("init_args", content) if isinstance(content, Mapping) else None
        content = content.get(name) if isinstance(content, Mapping) else None
    if isinstance(content, Mapping):
        return content.get("class_path")
    if isinstance(content, list):
        return ", ".join(str(each.get("class_path")) if isinstance(each, Mapping) else str(each) for each in content)
    return content

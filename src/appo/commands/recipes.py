"""Recipes: the configs that come with the package. `recipe:NAME` stands wherever the path of a config may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from appo.commands.errors import refuse
from appo.commands.modules import configs_of, options_of
from appo.core.registry import did_you_mean

PREFIX = "recipe:"
_PACKAGED = Path(__file__).parents[1] / "recipes"
_IN_CLONE = Path(__file__).parents[3] / "configs"
FOLDER = _PACKAGED if _PACKAGED.is_dir() else _IN_CLONE
"""Of the recipes: the wheel holds those of `configs/`."""


def recipe_names() -> list[str]:
    """The names of all recipes, those without a folder first."""
    names = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("**/*.yaml")]
    return sorted(names, key=lambda name: (name.count("/"), name))


def config_path(config: str) -> str:
    """The path of a config, which may be named as a recipe.

    Raises:
        ValueError: if there is no recipe of that name.
    """
    if not config.startswith(PREFIX):
        return config
    name = config.removeprefix(PREFIX)
    if name not in recipe_names():
        raise ValueError(
            f"config must name a recipe that `appo recipes` lists, got {config!r}{did_you_mean(name, recipe_names())}"
        )
    return str(FOLDER / f"{name}.yaml")


def with_paths(args: Sequence[str]) -> list[str]:
    """The options of a command, with the paths of the recipes that ``--config`` names."""
    return [arg if config is None else f"--config={config_path(config)}" for arg, config in options_of(args)]


def recipes(name: str = "") -> str:
    """What a recipe holds, or which recipes there are.

    Args:
        name: of a recipe, which is printed; empty lists them all.

    Raises:
        ValueError: if there is no recipe of that name.
    """
    if name:
        return Path(config_path(PREFIX + name.removeprefix(PREFIX))).read_text(encoding="utf-8").rstrip()
    writers, names = _writers(), recipe_names()
    width = max(map(len, names))
    lines = [f"{name:<{width}}  {_headline(name)}{_needs(name, writers)}" for name in names]
    head = f"--config {PREFIX}NAME takes one, an overlay behind another; `appo recipes NAME` prints it."
    return "\n".join([head, "", *lines])


def check_start(args: Sequence[str]) -> None:
    """Says which recipe writes the policy that a run begins with, if nobody has run it: before anything is loaded.

    Args:
        args: of a command that needs a policy, configs by their paths.

    Raises:
        SystemExit: if the policy is missing and a recipe writes it.
    """
    policy = _policy(args)
    if policy is None or (Path(policy) / "config.json").is_file():
        return
    writer = _writers(args).get(policy)
    if writer is not None:
        refuse(
            f"model.policy must be the policy that supervised fine-tuning leaves, got {policy!r}, which is not there "
            f"yet: run `appo sft --config {writer}` first, or name another with --model.policy"
        )


def _policy(args: Sequence[str]) -> str | None:
    """What a command line says last of `model.policy`, if it is plain to read."""
    policy: Any = None
    follows = False
    for arg, config in options_of(args):
        if config is not None and Path(config).is_file():
            section = _content(Path(config)).get("model")
            policy = section.get("policy", policy) if isinstance(section, dict) else policy
        elif follows or arg.startswith("--model.policy="):
            policy = arg.removeprefix("--model.policy=")
        follows = arg == "--model.policy"
    return policy if isinstance(policy, str) else None


def _writers(args: Sequence[str] = ()) -> dict[str, str]:
    """The recipes, and the configs of supervised fine-tuning beside those of a command, that write a policy."""
    beside = {Path(config).parent for config in configs_of(args)}
    configs = {path: str(path) for folder in beside for path in sorted(folder.glob("*sft.yaml"))}
    configs |= {FOLDER / f"{name}.yaml": f"{PREFIX}{name}" for name in recipe_names()}
    found: dict[str, str] = {}
    for path, config in configs.items():
        section = _content(path).get("model")
        folder = section.get("save_to") if isinstance(section, dict) else None
        if isinstance(folder, str):
            found.setdefault(folder, config)
    return found


def _needs(name: str, writers: Mapping[str, str]) -> str:
    """The recipe whose policy a recipe starts with, if there is one."""
    policy = (_content(FOLDER / f"{name}.yaml").get("model") or {}).get("policy")
    writer = writers.get(policy) if isinstance(policy, str) else None
    return f" (after {writer})" if writer else ""


def _headline(name: str) -> str:
    """The sentence that a recipe begins with."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if line.endswith(".") or not line.startswith("#"))
    return " ".join(line.lstrip("# ") for line in lines[: end + 1])


def _content(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}

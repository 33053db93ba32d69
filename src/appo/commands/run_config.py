"""The config that a run saved in its folder."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from omegaconf import DictConfig, OmegaConf

from appo.commands.foreign_config import read_config


def config_of_run(folders: Iterable[Path], rule: str) -> tuple[Path, DictConfig]:
    """Finds the newest config of a run.

    Args:
        folders: that may be the run's.
        rule: what the error begins with.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the newest cannot be read.
    """
    newest = newest_of_run(folders, "config.yaml", rule)
    return newest, read_config(newest)


def newest_of_run(folders: Iterable[Path], name: str, rule: str) -> Path:
    """The file of that name that the last start of a run wrote.

    Args:
        folders: that may be the run's.
        name: of the file.
        rule: what the error begins with.

    Raises:
        FileNotFoundError: if there is none.
    """
    folders = list(folders)
    found = [path for folder in folders for path in (*folder.glob(name), *folder.glob(f"*/version_*/{name}"))]
    if not found:
        raise FileNotFoundError(f"{rule}: no {name} of a run in {' or '.join(map(str, folders))}")
    return max(found, key=_version)


def instantiate(path: Path, config: DictConfig, key: str, kind: Any, description: str) -> Any:
    """The component that a key of a run's config describes.

    Args:
        path: of the config.
        config: what it says.
        key: of the component, dotted.
        kind: its class or a base of it.
        description: of what it must be, for the error.

    Raises:
        ValueError: if it is none.
    """
    try:
        node = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
    except (ValueError, OSError) as error:
        raise ValueError(f"{key} of {path} must be {description}: {error}") from error
    return _instantiated(path, node, key, kind, description)


def plain_value(path: Path, config: DictConfig, key: str) -> Any:
    """What a key of a stranger's config holds, without looking anything up for it.

    Args:
        path: of the config.
        config: what it says.
        key: dotted.

    Returns:
        The value; None if there is none.

    Raises:
        ValueError: if it asks for the environment or another value, or names a class: that would import it.
    """
    value: Any = OmegaConf.to_container(config, resolve=False)
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if (found := _active(value)) is not None:
        raise ValueError(f"{key} of {path} must hold plain values, got {found[:80]!r}")
    return value


def _active(value: Any) -> str | None:
    """The first part of a value that is more than a value; None if there is none."""
    if isinstance(value, dict):
        named = next((name for name in ("class_path", "init_args", "dict_kwargs", "__path__") if name in value), None)
        return named or next(filter(None, map(_active, (*value, *value.values()))), None)
    if isinstance(value, list):
        return next(filter(None, map(_active, value)), None)
    return value if isinstance(value, str) and "${" in value else None


def instantiate_plain(path: Path, config: DictConfig, key: str, kind: Any, description: str) -> Any:
    """As `instantiate`, of a stranger's config: only a class that is known, of values that stand there.

    Args:
        path: of the config.
        config: what it says.
        key: of the component, dotted.
        kind: its class.
        description: of what it must be, for the error.

    Raises:
        ValueError: if it is none, or holds more than plain values.
    """
    return _instantiated(path, plain_value(path, config, key), key, kind, description)


def _instantiated(path: Path, node: Any, key: str, kind: Any, description: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--component", type=kind)
    try:
        return parser.instantiate(parser.parse_object({"component": node})).component
    except (ArgumentError, ValueError, OSError) as error:
        raise ValueError(f"{key} of {path} must be {description}: {' '.join(str(error).split())}") from error


def _version(config: Path) -> int:
    """Numbers the folder that a logger made for one start of a run; one without a logger has only one config."""
    number = config.parent.name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1

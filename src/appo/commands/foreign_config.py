"""Configs that strangers wrote: read as data, whatever they hold, and refused where they are made to break a reader."""

from __future__ import annotations

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_MAX_BYTES = 2**22
_MAX_VALUES = 100_000
_MAX_DEPTH = 64


def read_config(path: Path) -> DictConfig:
    """What a config holds, its interpolations unresolved; nothing if it is no mapping.

    Raises:
        ValueError: if it is no YAML, or too large or too deep once its aliases are written out.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1).decode()
        _check_size(text)
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a config in YAML: {' '.join(str(error).split())[:300]}") from error
    return config if isinstance(config, DictConfig) else OmegaConf.create({})


def _check_size(text: str) -> None:
    """Counts values as if every alias were what it stands for: a few lines of aliases of aliases make billions."""
    if len(text) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
        elif isinstance(event, yaml.AliasEvent):
            count += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count + 1 - before
        count += 1
        if count > _MAX_VALUES or len(opened) > _MAX_DEPTH:
            raise ValueError(f"it has more than {_MAX_VALUES} values, or is nested deeper than {_MAX_DEPTH}")

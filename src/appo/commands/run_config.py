"""The config that a run saved in its folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def config_of_run(folders: Iterable[Path], rule: str) -> tuple[Path, DictConfig]:
    """Finds the newest config of a run.

    Args:
        folders: that may be the run's.
        rule: what the error begins with.

    Raises:
        FileNotFoundError: if there is none.
    """
    folders = list(folders)
    found = [
        path for folder in folders for path in (*folder.glob("config.yaml"), *folder.glob("*/version_*/config.yaml"))
    ]
    if not found:
        raise FileNotFoundError(f"{rule}: no config.yaml of a run in {' or '.join(map(str, folders))}")
    newest = max(found, key=_version)
    config = OmegaConf.load(newest)
    return newest, config if isinstance(config, DictConfig) else OmegaConf.create({})


def _version(config: Path) -> int:
    """Numbers the folder that a logger made for one start of a run; one without a logger has only one config."""
    number = config.parent.name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1

"""The file that says what a run was started with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from appo.commands.parser import AppoParser
from appo.commands.record.environment import environment
from appo.commands.record.fingerprints import files_in, fingerprint
from appo.commands.saved_config import SavedConfig, make_private

FILE = "run.json"
"""Beside the config of each start of a run."""

_SECTIONS = ("model", "data", "rollout")
"""Of the config, whose files a run reads."""

_WRITTEN = ("model.save_to",)
"""Keys of files that a run writes."""


@dataclass(frozen=True)
class RunRecord:
    """What a run was started with.

    Attributes:
        command: of ``appo``.
        processes: that the run has.
        environment: code, packages and hardware.
        files: fingerprint of each file or folder that the config names, by key.
        config: all of it, as saved: what came from environment variables is an interpolation.
    """

    command: str
    processes: int
    environment: Mapping[str, Any]
    files: Mapping[str, str]
    config: Mapping[str, Any]

    @classmethod
    def of(cls, command: str, processes: int, config: Mapping[str, Any]) -> RunRecord:
        """Of a run that is about to start in this process.

        Args:
            command: of ``appo``.
            processes: that the run has.
            config: as it may be saved.

        Raises:
            OSError: if a file that the config names cannot be read.
        """
        return cls(command, processes, environment(), files_of(config), config)

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Of a file that `write` wrote.

        Raises:
            ValueError: if it is none.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} must be the record of a run: {error!r}") from error

    def write(self, path: Path) -> None:
        """Writes all of it for the user alone."""
        make_private(path)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class RecordedConfig(SavedConfig):
    """Writes the record of a training beside its config."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":  # on the first process alone, so nothing may be asked of all
            config = yaml.safe_load((self.folder / self.config_filename).read_text(encoding="utf-8"))
            assert isinstance(self.parser, AppoParser)
            command = self.parser.command.removeprefix("appo ")
            RunRecord.of(command, trainer.world_size, config).write(self.folder / FILE)
            for logger in trainer.loggers:
                if not isinstance(logger, CSVLogger | TensorBoardLogger):  # those have it beside them
                    logger.log_hyperparams(config)


def files_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The fingerprints of what a run reads, by dotted key."""
    read = {name: config.get(name) for name in _SECTIONS}
    return {key: fingerprint(path) for key, path in files_in(read) if key not in _WRITTEN}


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """A line for each value that differs between two records."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            line
            for name in dict.fromkeys((*old, *new))
            for line in differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if old == new else [f"{key} was {old!r} and is {new!r}"]

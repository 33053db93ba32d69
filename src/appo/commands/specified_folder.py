"""A folder of results, a line each, all of one specification: a command that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from appo.commands.ablate.folders import SPECIFICATION, differences, read_specification, write_specification
from appo.commands.ablate.runs import flatten

_CONFIG = "config.yaml"
"""Is written before anything is measured."""

_OF_TRAINER = "trainer.precision"
"""The one option of the trainer that decides about results."""


class SpecifiedFolder:
    """Records of one specification in JSON lines; several processes write a file each.

    Args:
        path: of the folder.
        specification: every option that decides about the results, by dotted key.
        name: of the file, without its suffix.

    Raises:
        ValueError: if the folder holds something else.
    """

    def __init__(self, path: Path, specification: Mapping[str, Any], name: str) -> None:
        self.path = path
        self.specification = specification
        self._name = name
        found = read_specification(path)
        if found is None and path.exists() and any(each.name != _CONFIG for each in path.iterdir()):
            raise ValueError(f"out must not hold foreign files, got {path} without a {SPECIFICATION}")
        wanted = json.loads(json.dumps(specification))
        if found is not None and found != wanted:
            raise ValueError(
                f"out must hold results of the same specification, got {path} with another one: "
                f"{differences(found, wanted)}"
            )

    def records(self, rank: int | None = None) -> list[dict[str, Any]]:
        """What is there so far; a line that a killed process left unfinished is cut off.

        Args:
            rank: of the process whose records are wanted. None: of all.
        """
        paths = sorted(self.path.glob(f"{self._name}*.jsonl")) if rank is None else [self._file(rank)]
        return [record for path in paths if path.exists() for record in _whole_lines(path)]

    def append_records(self, records: Sequence[Mapping[str, Any]], rank: int = 0) -> None:
        """Adds records; the first ones mark the folder as that of the specification.

        Args:
            records: in types that JSON has.
            rank: of the process that adds them.
        """
        self.mark()
        lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
        with self._file(rank).open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def mark(self) -> None:
        """Says in the folder what it holds results of, unless it does."""
        if read_specification(self.path) is None:
            write_specification(self.path, self.specification)

    def _file(self, rank: int) -> Path:
        of_rank = f"_rank_{rank:05d}" if rank else ""
        return self.path / f"{self._name}{of_rank}.jsonl"


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.decode().splitlines()]


def decisive_options(parser: ArgumentParser, config: Namespace, without: Sequence[str]) -> dict[str, Any]:
    """Every option of a config that decides about results, by dotted key.

    Args:
        parser: of the config.
        config: parsed.
        without: further options that do not decide; no option of the trainer does, but for its precision.
    """
    dumped = yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True))
    flat = flatten(dumped, without=without)
    return {key: value for key, value in flat.items() if not key.startswith("trainer.") or key == _OF_TRAINER}


def weights_digest(*paths: str | None) -> str:
    """Of the files of weights at some places, so that a policy that was trained on is another one."""
    digest = blake2b(digest_size=16)
    for place in (Path(path) for path in paths if path is not None):
        files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place] if place.is_file() else []
        for path in files:
            with path.open("rb") as file:
                digest.update(file_digest(file, "blake2b").digest())
    return digest.hexdigest()

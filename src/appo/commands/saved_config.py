"""The config that a run saves: without what it took from the environment, and for nobody else to read."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

_OF_PLUG_INS = re.compile(r"\$\{(?!oc\.)[A-Za-z_][\w.]*:")
"""An interpolation by a resolver that others have registered, which may look anywhere."""


class SavedConfig(SaveConfigCallback):
    """Writes ``config.yaml``, readable and writable for the user alone: headers, addresses and fields stand in it."""

    folder: Path
    """Where it stands, once it is written."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Asked by all processes: the first one tells the others.
        if not self.already_saved and (folder := trainer.log_dir) is not None:
            self.folder = Path(folder)
            if trainer.is_global_zero:
                make_private(self.folder / self.config_filename)
        super().setup(trainer, pl_module, stage)


def make_private(path: Path) -> None:
    """Makes sure that a file exists and that its owner alone may read it, before anything is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)


def without_environment(resolved: Any, interpolated: Any) -> Any:
    """A config in which texts that came from the environment are interpolations again.

    Args:
        resolved: what a run is made with.
        interpolated: the same before interpolations were resolved.
    """
    config = OmegaConf.create(interpolated)
    hidden: dict[str, str] = {}

    def restored(value: Any, raw: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(value, dict) and isinstance(raw, dict):
            return {key: restored(item, raw.get(key), (*path, key)) for key, item in value.items()}
        if isinstance(value, list) and isinstance(raw, list) and len(value) == len(raw):
            return [restored(item, other, (*path, i)) for i, (item, other) in enumerate(zip(value, raw, strict=True))]
        # An interpolation may stand for a whole section.
        if isinstance(value, str | dict | list) and isinstance(raw, str) and _is_foreign(config, raw, path):
            if isinstance(value, str):
                hidden[value] = raw
            return raw
        return value

    # What is linked to a value, such as the tokenizer to the policy, was not linked yet.
    def unlinked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unlinked(item) for key, item in value.items()}
        if isinstance(value, list):
            return [unlinked(item) for item in value]
        return hidden.get(value, value) if isinstance(value, str) else value

    found = restored(resolved, interpolated, ())
    return unlinked(found) if hidden else found


def _is_foreign(config: Any, raw: str, path: tuple[str | int, ...]) -> bool:
    """Whether a value is made of what does not stand in the config, directly or by way of another value."""
    if "${" not in raw or _OF_PLUG_INS.search(raw):
        return "${" in raw
    with _watched_environment() as asked:
        try:
            value = config
            for key in path:
                value = value[key]
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException:
            return True
    return bool(asked)


@contextmanager
def _watched_environment() -> Iterator[list[str]]:
    """Collects the names of the variables that interpolations ask for."""
    asked: list[str] = []

    def watched(key: str, *default: str | None) -> str | None:
        asked.append(key)
        return oc.env(key, *default)

    _register(watched)
    try:
        yield asked
    finally:
        _register(oc.env)


def _register(resolver: Callable[..., str | None]) -> None:
    with warnings.catch_warnings():
        # Its newest name is not there in the oldest OmegaConf that will do.
        warnings.simplefilter("ignore", UserWarning)
        OmegaConf.register_new_resolver("oc.env", resolver, replace=True)

"""The parser of commands that run Lightning's trainer."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from appo.commands.components import unknown_component
from appo.commands.parser import AppoParser
from appo.commands.saved_config import without_environment


class TrainerParser(AppoParser, LightningArgumentParser):
    """Says which components there are where a name is unknown, and writes configs without the environment."""

    interpolated: Any = None
    """The config before interpolations were resolved, if it had any."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"Expected a dot import path string: (\S+)", message)
        key = re.search(r'key "([\w.]+)"', message)
        if unknown and key:
            message = f"{key[1]}: {unknown_component(key[1], unknown[1])}"
        super().error(message, ex)

    def dump(self, cfg: Any, **kwargs: Any) -> str:
        """Writes no text that came from the environment: it stays the interpolation that it was."""
        text: str = super().dump(cfg, **kwargs)
        if "${" in text and kwargs.get("skip_link_targets") is False:
            # As it is asked for before interpolations are resolved.
            self.interpolated = yaml.safe_load(text)
        elif self.interpolated is not None:
            content = yaml.safe_load(text)
            restored = without_environment(content, self.interpolated)
            if restored != content:
                header = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
                text = header + str(yaml.safe_dump(restored, sort_keys=False))
        return text

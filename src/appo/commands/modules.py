"""Modules of the user's that no package holds: those beside a config, and those where a command is run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


def search_folders(args: Sequence[str]) -> None:
    """Lets a ``class_path`` and a function's path name modules in the present folder and in that of each config.

    They are searched last, so that no module there takes the place of an installed one. Other ranks run the same
    command, and worker processes get `sys.path` from their parent.

    Args:
        args: of a command.
    """
    for folder in (Path.cwd(), *(Path(config).resolve().parent for config in configs_of(args))):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def configs_of(args: Sequence[str]) -> list[str]:
    """The files that ``--config`` names, in order."""
    return [config for _, config in options_of(args) if config is not None]


def options_of(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The options of a command in order, each beside the config that it names, or None.

    Args:
        args: of a command; ``--config FILE`` comes as ``--config=FILE``.
    """
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        config = None if name != "--config" else value if equals else next(rest, None)
        yield arg if config is None else f"--config={config}", config

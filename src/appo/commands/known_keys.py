"""Finds misspelled options by the source text of the classes alone, before anything large is imported.

What is not certain, as the options of a user's own class, is left to the parser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from appo.commands.errors import refuse
from appo.commands.renamed_keys import REMOVED_KEYS, RENAMED_KEYS
from appo.commands.sources import ClassName, Options, descendants, options_of, options_of_command
from appo.core.registry import did_you_mean

_OF_EVERY_COMMAND = ("config", "help", "print_config", "seed_everything")
_BUILT_BY = {
    "sft": (ClassName("appo.commands.lightning_cli", "SupervisedCLI"), "fit"),
    "plan": (ClassName("appo.commands.plan.cli", "PlanCLI"), "fit"),
    "bench": (ClassName("appo.commands.bench.cli", "BenchCLI"), "test"),
    "pilot": (ClassName("appo.commands.pilot.cli", "PilotCLI"), "test"),
}
"""Class that builds a command, and the method of the trainer whose arguments are options too."""

Key = tuple[str, ...]


class _Given(NamedTuple):
    """An option as a user has written it.

    Attributes:
        key: with the names of its sections, without the ``init_args`` of a component.
        value: as text; empty for a mapping and a list.
        place: file and line; empty on the command line.
    """

    key: Key
    value: str
    place: str


def check_keys(command: str, args: Sequence[str]) -> None:
    """Makes sure that all options of a command exist, on the command line and in the files that it names.

    Args:
        command: one that runs or plans a training.
        args: its options.

    Raises:
        SystemExit: if one does not, or a file cannot be read, after a line that says where and what may be meant.
    """
    options = options_of_training(command)
    given = list(_given(args))
    foreign = {each.key for each in given if _is_foreign(options, each)}
    for key, _, place in given:
        old = ".".join(key)
        if (new := _renamed(key)) is not None:
            refuse(f"{place}: {old} is named {new} now" if place else f"--{old} is named --{new} now")
        is_foreign = any(key[: len(each)] == each for each in foreign)
        if not is_foreign and (reason := REMOVED_KEYS.get(old)) is not None:
            refuse(f"{place}: {old} is gone: {reason}" if place else f"--{old} is gone: {reason}")
        unknown = None if is_foreign else _unknown(options, key)
        if unknown is not None:
            name, known = unknown
            prefix = "" if place else "--"
            question = did_you_mean(prefix + name, [prefix + other for other in known])
            refuse(f"{place}: no key is named {name}{question}" if place else f"no option is named --{name}{question}")


def options_of_training(command: str) -> Options:
    """The options of a command that runs or plans a training, by the names of its sections and those beside them."""
    default = (ClassName("appo.commands.lightning_cli", "AppoCLI"), command)
    options = options_of_command(*_BUILT_BY.get(command, default))
    return options | {name: frozenset() for name in _OF_EVERY_COMMAND}


def _renamed(key: Key) -> str | None:
    """The present name of an option that was named otherwise."""
    for length in range(len(key), 0, -1):
        if (new := RENAMED_KEYS.get(".".join(key[:length]))) is not None:
            return ".".join([new, *key[length:]])
    return None


def _unknown(options: Options, key: Key) -> tuple[str, list[str]] | None:
    """The part of an option's name that does not exist, and what may be meant; None if it exists, or may exist."""
    for depth, name in enumerate(key):
        if name == "help":  # of a component
            return None
        if name not in options:
            above = "".join(f"{each}." for each in key[:depth])
            moved = [f"{above}{section}.{name}" for section in options if name in _section(options, section)]
            return above + name, moved or [above + other for other in options]
        following = below(options, name)
        if not following:
            return None
        options = following
    return None


def below(options: Options, name: str) -> Options | None:
    """The options of the value of an option, those of every component that may stand there; None if none is known."""
    value = options[name]
    return None if value is None else options_of(cls for base in value for cls in descendants(base))


def _section(options: Options, name: str) -> Options:
    """The options of a value that is always of one class, and no component; nothing for another."""
    value = options[name]
    return (below(options, name) or {}) if value and all(len(descendants(cls)) == 1 for cls in value) else {}


def _is_foreign(options: Options, given: _Given) -> bool:
    """Whether an option's value names a class, or a file, whose options are not known here."""
    value: frozenset[ClassName] | None = frozenset()
    for name in given.key:
        if options is None or name not in options:
            return False
        value, options = options[name], below(options, name) or {}
    names = {cls.name for base in value or () for cls in descendants(base)}
    path, _, name = given.value.rpartition(".")
    return bool(given.value and names) and not (name in names and path.split(".")[0] in ("", "appo"))


def _given(args: Sequence[str]) -> Iterator[_Given]:
    for index, arg in enumerate(args):
        if not arg.startswith("--"):
            continue
        name, equals, value = arg[2:].partition("=")
        if not equals and index + 1 < len(args) and not args[index + 1].startswith("--"):
            value = args[index + 1]
        if name == "config":
            yield from _of_file(value)
        else:
            yield _Given(_plain(name.rstrip("+").replace("-", "_").split(".")), value, "")


def _of_file(path: str) -> Iterator[_Given]:
    if "://" in path:
        return  # of another file system, which the parser opens
    if not Path(path).is_file():
        refuse(f"config must name a file, got {path!r}")
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        refuse(f"{path}{line}: config must be YAML: {error.problem}", error)
    yield from _of_node(root, (), path)


def _of_node(node: yaml.Node | None, key: Key, path: str) -> Iterator[_Given]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _of_node(item, key, path)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            below = key if name.value == "<<" else _plain((*key, str(name.value)))
            text = value.value if isinstance(value, yaml.ScalarNode) else ""
            yield _Given(below, text, f"{path}:{name.start_mark.line + 1}")
            yield from _of_node(value, below, path)


def _plain(names: Sequence[str]) -> Key:
    return tuple(name for name in names if name not in ("init_args", "class_path"))

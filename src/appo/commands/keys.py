"""All options of a command, and what their classes say of each: read off source text, so nothing large is imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import cleandoc

from appo.commands.known_keys import below, options_of_training
from appo.commands.sources import ClassName, Options, class_node, constructor, descendants, fields_of, lineage

SKIPPED = ("init_args", "class_path")
"""Levels of a config that no option has."""


@dataclass(frozen=True)
class Described:
    """What is known of an option.

    Attributes:
        owner: the class that takes it.
        type: of its values, as it is written.
        default: as it is written; empty if it must be given.
        help: what the class says of it.
    """

    owner: ClassName
    type: str
    default: str
    help: str


def keys_of(command: str) -> Iterator[str]:
    """The dotted names of all options of a command that trains or evaluates, sections included."""
    yield from _keys(options_of_training(command), "", frozenset())


def _keys(options: Options, prefix: str, above: frozenset[ClassName]) -> Iterator[str]:
    for name, value in sorted(options.items()):
        yield prefix + name
        # A reward may be made of rewards, without end.
        if value and above.isdisjoint(value):
            yield from _keys(below(options, name) or {}, f"{prefix}{name}.", above | value)


def components_of(command: str) -> dict[str, list[str]]:
    """The names of the classes that may stand for an option, of options that take a component."""
    found = {key: component_names(command, key) for key in keys_of(command)}
    return {key: names for key, names in found.items() if len(names) > 1}


def component_names(command: str, key: str) -> list[str]:
    """Those of one option: classes that can be made, without the base that stands for them all."""
    declared = _declared(command, key)
    classes = sorted({each for base in declared for each in descendants(base)})
    return [
        each.name for each in classes if each not in declared and "@abstractmethod" not in ast.unparse(class_node(each))
    ]


def _declared(command: str, key: str) -> frozenset[ClassName]:
    options: Options = options_of_training(command)
    *path, last = _parts(key)
    for name in path:
        options = below(options, name) or {}
    return options.get(last) or frozenset()


def classes_at(command: str, key: str) -> list[ClassName]:
    """The classes whose options stand below an option; none for a plain one."""
    return sorted({each for base in _declared(command, key) for each in descendants(base)})


def described(command: str, key: str) -> list[Described]:
    """What each class that takes an option says of it; nothing of a section or an option of the trainer's method."""
    *path, name = _parts(key)
    owners = classes_at(command, ".".join(path)) if path else []
    found = dict.fromkeys(each for owner in owners if (each := _described(owner, name)) is not None)
    return list(found)


def _parts(key: str) -> list[str]:
    return [part for part in key.split(".") if part not in SKIPPED]


def _described(cls: ClassName, name: str) -> Described | None:
    for each in lineage(cls):
        node = class_node(each)
        if (init := constructor(node)) is not None:
            return _argument(each, node, init, name)
        for field_name, field in fields_of(node):
            if field_name == name:
                return Described(each, ast.unparse(field.annotation), _default(field.value), _help_behind(node, field))
    return None


def _argument(cls: ClassName, node: ast.ClassDef, init: ast.FunctionDef, name: str) -> Described | None:
    arguments = [*init.args.posonlyargs, *init.args.args]
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = [*zip(arguments, defaults, strict=True), *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    for argument, default in pairs:
        if argument.arg == name:
            text = argument_help(ast.get_docstring(node) or "", name)
            text = text or argument_help(ast.get_docstring(init) or "", name)
            kind = "" if argument.annotation is None else ast.unparse(argument.annotation)
            return Described(cls, kind, _default(default), text)
    return None


def _default(node: ast.expr | None) -> str:
    """As it is written, but for the factory of a dataclass."""
    text = "" if node is None else ast.unparse(node)
    made = re.fullmatch(r"field\(.*default_factory=(.*)\)", text)
    return f"{made[1]}()" if made else text


def _help_behind(node: ast.ClassDef, field: ast.AnnAssign) -> str:
    """The string that follows a field."""
    place = node.body.index(field) + 1
    match node.body[place : place + 1]:
        case [ast.Expr(value=ast.Constant(value=str() as text))]:
            return " ".join(cleandoc(text).split())
    return ""


def argument_help(docstring: str, name: str) -> str:
    """What the section `Args` of a docstring says of an argument."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        return ""
    indent = re.match(r"\s*", section[1])
    margin = "" if indent is None else indent[0].replace("\n", "")
    entry = re.search(rf"^{margin}{name}[^:\n]*:(.*(?:\n{margin}[ \t]+.*|\n(?=\s*\n))*)", section[1], re.MULTILINE)
    return "" if entry is None else " ".join(entry[1].split())

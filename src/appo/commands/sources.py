"""Reads off the source text of classes which options they have, without importing what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = "appo"
_TRAINER = "lightning.pytorch.trainer.trainer"
_PLAIN = {"bool", "float", "int", "list", "Literal", "None", "Path", "Sequence", "str", "tuple"}
_NO_OPTIONS = {"ABC", "Generic", "object"}


class ClassName(NamedTuple):
    """A class by the module that defines it, and its name there."""

    module: str
    name: str


Value = frozenset[ClassName] | None
"""The classes whose options the value of an option has: none for a plain one, None if it cannot be told."""

Options = dict[str, Value]


def options_of_command(cls: ClassName, method: str) -> Options:
    """The options of a command that is built by a descendant of Lightning's CLI: its sections, and those beside them.

    Args:
        cls: the descendant.
        method: of the trainer, whose arguments are options too.
    """
    options: Options = {"trainer": frozenset({ClassName(_TRAINER, "Trainer")})}
    called = _method(class_node(ClassName(_TRAINER, "Trainer")), method)
    assert called is not None
    options |= {name: frozenset() for name in _arguments(called)}
    for each in lineage(cls):
        for call in (call for call in ast.walk(class_node(each)) if isinstance(call, ast.Call)):
            strings = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            classes = [ref for arg in call.args if isinstance(arg, ast.Name) and (ref := _resolve(each.module, arg.id))]
            match call.func:
                case ast.Attribute(attr="add_lightning_class_args"):
                    options[strings[0]] = frozenset(classes)
                case ast.Attribute(attr="add_argument"):
                    options |= {name.removeprefix("--").replace("-", "_"): frozenset() for name in strings}
                case ast.Attribute(attr="__init__") if classes:
                    options |= {key: frozenset({ref}) for key, ref in zip(("model", "data"), classes, strict=True)}
    return options


def options_of(classes: Iterable[ClassName]) -> Options | None:
    """The options of any of some classes; None if those of one cannot be told."""
    merged: Options = {}
    for cls in classes:
        options = _options(cls)
        if options is None:
            return None
        for name, value in options.items():
            other = merged.get(name, frozenset())
            merged[name] = None if value is None or other is None else value | other
    return merged


@cache
def descendants(cls: ClassName) -> frozenset[ClassName]:
    """A class and those below it that its part of the package defines."""
    room = ".".join(cls.module.split(".")[:2])
    found = {cls}
    classes = [
        ClassName(module, name)
        for module in (_modules(room) if cls.module.startswith(PACKAGE) else ())
        for name, node in _names(module).items()
        if isinstance(node, ast.ClassDef)
    ]
    size = 0
    while len(found) > size:
        size = len(found)
        found.update(each for each in classes if not found.isdisjoint(_bases(each)))
    return frozenset(found)


@cache
def _options(cls: ClassName) -> Options | None:
    node = class_node(cls)
    if (init := _method(node, "__init__")) is not None:
        if init.args.kwarg is not None:
            return None
        return {name: _value(cls.module, annotation) for name, annotation in _arguments(init).items()}
    bases = _bases(cls)
    options = None if None in bases else options_of(base for base in bases if base is not None)
    if options is not None and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        options |= {name: _value(cls.module, field.annotation) for name, field in fields_of(node)}
    return options


def fields_of(node: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign]]:
    """Of a dataclass, those that its constructor takes."""
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = ast.unparse(field)
            if "ClassVar" not in text and "init=False" not in text and "KW_ONLY" not in text:
                yield field.target.id, field


def _value(module: str, annotation: ast.expr | None) -> Value:
    match annotation:
        case None | ast.Constant(value=None):
            return frozenset()
        case ast.Subscript(value=ast.Name(id="Literal")):
            return frozenset()
        case ast.Constant():  # the dots of a tuple
            return frozenset()
        case ast.Name(id=name) if name in _PLAIN:
            return frozenset()
        case ast.Name(id=name):
            defined = _resolve(module, name)
            if defined is None:
                return None
            target = _names(defined.module)[defined.name]
            return _value(defined.module, target) if isinstance(target, ast.expr) else frozenset({defined})
        case ast.BinOp() | ast.Subscript() | ast.Tuple():
            parts = [_value(module, part) for part in ast.iter_child_nodes(annotation) if isinstance(part, ast.expr)]
            return None if None in parts else frozenset().union(*(part for part in parts if part is not None))
    return None


def class_node(cls: ClassName) -> ast.ClassDef:
    """The source of a class."""
    node = _names(cls.module)[cls.name]
    assert isinstance(node, ast.ClassDef)
    return node


def _bases(cls: ClassName) -> list[ClassName | None]:
    """Classes that one derives from, None for each that is not of this package."""
    names = [base.id if isinstance(base, ast.Name) else "" for base in class_node(cls).bases]
    return [_resolve(cls.module, name) for name in names if name not in _NO_OPTIONS]


def lineage(cls: ClassName) -> list[ClassName]:
    """A class of this package and those that it derives from."""
    return [cls, *(each for base in _bases(cls) if base is not None for each in lineage(base))]


def constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    """That which a class writes itself; None if it has another's, or that of a dataclass."""
    return _method(node, "__init__")


def arguments_of(module: str, function: str) -> list[str]:
    """The names of the arguments of a function."""
    body = ast.parse(_file(module).read_text(encoding="utf-8")).body
    node = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == function)
    return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == name), None)


def _arguments(function: ast.FunctionDef) -> dict[str, ast.expr | None]:
    """Names and annotations, without that of the object itself."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {argument.arg: argument.annotation for argument in arguments[1:]}


def _resolve(module: str, name: str) -> ClassName | None:
    """Where a name of a module is defined, if that is in this package."""
    match _names(module).get(name):
        case (str() as origin, str() as original):
            return _resolve(origin, original) if origin.split(".")[0] == PACKAGE else None
        case None:
            return None
    return ClassName(module, name)


@cache
def _names(module: str) -> dict[str, ast.ClassDef | ast.expr | tuple[str, str]]:
    """What a module defines or imports by a name: a class, another name for a type, or module and name elsewhere."""
    names: dict[str, ast.ClassDef | ast.expr | tuple[str, str]] = {}
    body = ast.parse(_file(module).read_text(encoding="utf-8")).body
    for node in (*body, *(node for block in body if isinstance(block, ast.If) for node in block.body)):
        match node:
            case ast.ClassDef(name=name):
                names[name] = node
            case ast.ImportFrom(module=str() as origin, level=0):
                names |= {alias.asname or alias.name: (origin, alias.name) for alias in node.names}
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                names.setdefault(name, value)
    return names


def _modules(package: str) -> Iterator[str]:
    """The modules of a package and of those within."""
    folder = _file(package).parent
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join([package, *(part for part in parts if part != "__init__")])


def _file(module: str) -> Path:
    top, *rest = module.split(".")
    spec = find_spec(top)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

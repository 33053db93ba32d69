"""Reads the package without importing it: options of its components, and public names without documentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import griffe

SOURCE = Path(__file__).parents[1] / "src"

KEYS = {
    "SCORERS": "rollout.scorer",
    "ADVANTAGES": "rollout.advantage",
    "LOSSES": "model.loss",
    "REWARDS": "rollout.reward",
    "TOOLS": "rollout.tools",
    "CALL_SYNTAXES": "rollout.syntax",
    "SEARCH_BACKENDS": "rollout.tools[...].init_args.backend",
    "ENGINES": "rollout.engine",
    "PROMPT_SOURCES": "data.source",
    "CONVERSATION_SOURCES": "data.source",
}
"""Where a config names the components of each registry."""

SECTIONS = {
    "model": "training.module.APPOModule",
    "data": "training.datamodule.RolloutDataModule",
    "rollout": "training.callbacks.rollout.RolloutCallback",
    "rollout.branching": "rollouts.branching.Branching",
    "rollout.sampling": "training.options.SamplingOptions",
    "rollout.limits": "rollouts.episode.Limits",
    "rollout.rewards": "training.options.RewardOptions",
    "rollout.evaluation": "training.options.EvaluationOptions",
}
"""The class that a section of a run's config is made of."""

SFT_SECTIONS = {"model": "sft.module.SupervisedModule", "data": "sft.datamodule.SupervisedDataModule"}
"""The same for `appo sft`."""

PUBLIC = {
    "Python interface": ["appo", "appo.training.callbacks", "appo.training.options", "appo.training.schedules"],
    "Trajectories and batches": [
        "appo.core.trajectory",
        "appo.core.batch",
        "appo.core.context",
        "appo.core.registry",
        "appo.core.seeding",
    ],
    "Maths": ["appo.functional"],
    "Scorers": ["appo.scorers"],
    "Advantages": ["appo.advantages"],
    "Losses": ["appo.losses"],
    "Rewards": ["appo.rewards"],
    "Tools": ["appo.tools"],
    "Engines": ["appo.engines"],
    "Prompts": ["appo.prompts"],
    "Rollouts": ["appo.rollouts"],
    "Supervised fine-tuning": ["appo.sft"],
}
"""Pages of the API reference: modules whose names are public, those of ``__all__`` or else all that they define."""


def load_package(name: str = "appo", source: Path = SOURCE) -> griffe.Module:
    """The package, read and not imported."""
    package = griffe.load(name, search_paths=[str(source)], docstring_parser="google", resolve_aliases=True)
    assert isinstance(package, griffe.Module)
    return package


def target(obj: griffe.Object | griffe.Alias) -> griffe.Object:
    """What a name stands for."""
    return obj.final_target if isinstance(obj, griffe.Alias) else obj


def registries(package: griffe.Module) -> dict[str, tuple[str, str]]:
    """Kind and entry-point group of every registry, by its name."""
    found = {}
    for module in _modules(package):
        for name, member in module.members.items():
            value = getattr(member, "value", None) if not member.is_alias else None
            if isinstance(value, griffe.ExprCall) and str(value.function) == "Registry" and name.isupper():
                kind, group = (str(getattr(each, "value", each)).strip("'") for each in value.arguments)
                found[name] = (kind, group)
    return found


def components(package: griffe.Module) -> dict[str, list[griffe.Class]]:
    """The classes of every registry by its name, in the order of theirs."""
    found: dict[str, list[griffe.Class]] = {name: [] for name in registries(package)}
    for module in _modules(package):
        for member in module.members.values():
            if isinstance(member, griffe.Class):
                for decorator in member.decorators:
                    registry, _, method = decorator.callable_path.rpartition(".")
                    if method == "register":
                        found[registry.rpartition(".")[2]].append(member)
    return {name: sorted(classes, key=lambda each: each.name) for name, classes in found.items()}


def options_of(cls: griffe.Class) -> list[tuple[str, str, str, str]]:
    """Name, type, default and help of every option of a class; a default that must be given is empty."""
    described = _described(cls)
    return [
        (p.name, _type(p.annotation, cls), "" if p.default is None else str(p.default), described.get(p.name, ""))
        for p in cls.parameters
        if p.name != "self" and not p.name.startswith("_") and p.kind is not griffe.ParameterKind.var_keyword
    ]


def public_names(package: griffe.Module, modules: Iterable[str]) -> dict[str, list[str]]:
    """The public names of modules of the package, by their full names."""
    root = f"{package.path}."
    return {path: _names(package if path == package.path else package[path.removeprefix(root)]) for path in modules}


def undocumented(package: griffe.Module, names: dict[str, list[str]]) -> list[str]:
    """Public classes, functions, methods, attributes and parameters that no docstring explains.

    Args:
        package: that has them.
        names: public names of each of its packages.
    """
    missing = []
    for path, members in names.items():
        for name in members:
            obj = package[f"{path}.{name}".removeprefix(f"{package.path}.")]
            missing += [f"{path}.{name}{part}" for part in _missing(target(obj))]
    return missing


def _modules(module: griffe.Module) -> Iterator[griffe.Module]:
    yield module
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            yield from _modules(member)


def _names(module: griffe.Object | griffe.Alias) -> list[str]:
    if module.exports is not None:
        return [str(name) for name in module.exports if not str(name).startswith("__")]
    return [name for name, member in module.members.items() if _is_public(member)]


def _is_public(member: griffe.Object | griffe.Alias) -> bool:
    if member.is_alias or member.is_module or member.name.startswith("_"):
        return False
    return member.is_class or member.is_function or bool(member.docstring)


def _described(obj: griffe.Object) -> dict[str, str]:
    """What docstrings say of the parameters of a function, or of the options of a class and of those that it has."""
    described: dict[str, str] = {}
    if isinstance(obj, griffe.Class):
        for base in reversed(obj.mro()):
            described |= _described(base)
        for name, member in obj.members.items():
            if not member.is_alias and member.is_attribute and member.docstring:
                described[name] = member.docstring.value
        if "__init__" in obj.members:
            described |= _described(target(obj.members["__init__"]))
    for section in obj.docstring.parsed if obj.docstring else []:
        if section.kind in (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.attributes):
            described |= {item.name: item.description for item in section.value}
    return described


def _missing(obj: griffe.Object) -> list[str]:
    if isinstance(obj, griffe.Function):
        return ([] if obj.docstring else [""]) + _undescribed(obj, obj.parameters)
    if isinstance(obj, griffe.Class):
        missing = [] if obj.docstring else [""]
        missing += _undescribed(obj, obj.parameters)
        for name, member in obj.members.items():
            if isinstance(member, griffe.Function) and not name.startswith("_") and not _inherits(obj, name):
                missing += [] if member.docstring else [f".{name}"]
        return missing
    return [] if obj.docstring else [""]


def _undescribed(obj: griffe.Object, parameters: griffe.Parameters) -> list[str]:
    """Parameters that have no entry, and that the text does not speak of either."""
    described, text = _described(obj), obj.docstring.value if obj.docstring else ""
    names = [p.name for p in parameters if p.name not in ("self", "cls") and not p.name.startswith("_")]
    return [f"({name})" for name in names if not described.get(name) and f"`{name}`" not in text]


def _inherits(cls: griffe.Class, name: str) -> bool:
    """Whether a class above documents the method, one of another library included."""
    known = {base.path for base in cls.mro()}
    outside = any(str(base) not in ("ABC", "Protocol") and not _is_known(base, known) for base in cls.bases)
    return outside or any(name in base.members and base.members[name].has_docstring for base in cls.mro())


def _is_known(base: griffe.Expr | str, known: set[str]) -> bool:
    path = base.canonical_path if isinstance(base, griffe.Expr) else base
    return path in known or path.rpartition(".")[2] in {each.rpartition(".")[2] for each in known}


def _type(annotation: griffe.Expr | str | None, cls: griffe.Class) -> str:
    """The annotation, with a named choice of texts written out."""
    if isinstance(annotation, griffe.ExprName):
        value = _value(annotation.canonical_path, cls)
        if value.startswith("Literal["):
            return value
    if isinstance(annotation, griffe.ExprBinOp):
        return f"{_type(annotation.left, cls)} {annotation.operator} {_type(annotation.right, cls)}"
    return "" if annotation is None else str(annotation)


def _value(path: str, cls: griffe.Class) -> str:
    try:
        found = target(cls.package[path.removeprefix(f"{cls.package.path}.")])
    except (KeyError, griffe.AliasResolutionError):
        return ""
    return str(getattr(found, "value", "") or "")

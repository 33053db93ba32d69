"""An interpreter in which nothing can be imported but this package and what it depends on, extras left out."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def distributions() -> set[str]:
    """Names of what `pip install appo` installs, found from what is installed here."""
    found: set[tuple[str, str]] = set()
    pending = [("", Requirement(line)) for line in PROJECT["dependencies"]]
    while pending:
        asked_for, requirement = pending.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": asked_for}):
            continue
        for extra in ("", *requirement.extras):
            key = canonicalize_name(requirement.name), extra
            if key not in found:
                found.add(key)
                pending += [(extra, Requirement(line)) for line in _requires(requirement.name)]
    return {name for name, _ in found}


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def hide_the_rest() -> set[str]:
    """Has modules of other packages be missing; returns their names."""
    present = distributions() | {"appo"}
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if not present & {canonicalize_name(owner) for owner in owners}
    }

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

        @staticmethod
        def find_distributions(context: DistributionFinder.Context) -> Iterator[Distribution]:
            found = PathFinder.find_distributions(context)
            return (each for each in found if canonicalize_name(each.metadata["Name"] or "") in present)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
    return hidden

"""Tables of swappable components, open to plug-in packages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from typing import Generic, TypeVar, cast

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question in brackets after the nearest of the names that are known; nothing if none is near.

    Args:
        name: that was given; its sections are separated by dots.
        known: names that exist, in the same sections or in others.
    """
    last = {each.rpartition(".")[2].lstrip("-"): each for each in known}
    wanted = name.rpartition(".")[2].lstrip("-")
    nearest = get_close_matches(wanted, last, n=1) or [each for each in last if each.startswith(wanted)]
    return f" (did you mean {last[nearest[0]]!r}?)" if nearest else ""


class Registry(Generic[T]):
    """The component classes of one kind by class name, which is also what a config writes as ``class_path``.

    Args:
        kind: what one component is called in messages.
        group: entry-point group through which other packages add theirs.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._classes: dict[str, type[T]] = {}
        self._modules: dict[str, str] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Adds `cls` under its own name and returns it unchanged, for use as a decorator.

        Raises:
            ValueError: if another class already has that name.
        """
        known = self._classes.setdefault(cls.__name__, cls)
        if known is not cls:
            raise ValueError(
                f"{self.kind} {cls.__name__!r} of {cls.__module__} is already registered by {known.__module__}"
            )
        return cls

    def expect(self, modules: Mapping[str, str]) -> None:
        """Names classes that register themselves when their module is imported, which waits until one is asked for.

        Args:
            modules: full name of the module by the name of the class.
        """
        self._modules |= modules

    def load_plugins(self) -> None:
        """Imports the classes that are expected, and registers those that installed packages declare for this kind.

        Raises:
            Exception: whatever importing a plug-in raises, with a note that names the plug-in.
        """
        for module in self._modules.values():
            import_module(module)
        for point in _points().select(group=self.group):
            try:
                cls = point.load()
            except Exception as error:
                error.add_note(f"raised while loading the {self.kind} plug-in {point.value!r}")
                raise
            self.register(cls)

    def unknown(self, name: str) -> str:
        """A message that says that there is no such component, which one may be meant, and which there are."""
        return f"no {self.kind} is named {name!r}{did_you_mean(name, self)}; registered: {', '.join(self)}"

    def __getitem__(self, name: str) -> type[T]:
        if name not in self:
            raise ValueError(self.unknown(name))
        if name not in self._classes:
            import_module(self._modules[name])
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes or name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes.keys() | self._modules))


@cache
def _points() -> EntryPoints:
    """Those of all installed packages, each of which has a file to read."""
    return cast(EntryPoints, entry_points())  # in Python 3.11 another class, which selects alike

"""What the site says of the package: every option, and no public name without documentation."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from importlib import import_module

import pytest

from appo.core.registry import Registry
from website.reference import (
    KEYS,
    PUBLIC,
    SECTIONS,
    SFT_SECTIONS,
    components,
    load_package,
    options_of,
    public_names,
    registries,
    target,
    undocumented,
)


@pytest.fixture(scope="module")
def package():
    return load_package()


def registry_of(name: str, group: str) -> Registry:
    places = {
        "appo.call_syntaxes": "appo.tools",
        "appo.search_backends": "appo.tools",
        "appo.conversations": "appo.sft",
    }
    return getattr(import_module(places.get(group, group)), name)


def test_every_registry_has_a_key(package):
    assert set(registries(package)) == set(KEYS)


def test_every_component_stands_with_every_option(package):
    for name, (kind, group) in registries(package).items():
        registry = registry_of(name, group)
        assert (registry.kind, registry.group) == (kind, group)
        registry.load_plugins()
        ours = {each for each in registry if registry[each].__module__.startswith("appo.")}
        classes = {cls.name: cls for cls in components(package)[name]}
        assert ours == set(classes)
        for each in ours & {each for each in ours if is_dataclass(registry[each])}:
            wanted = [field.name for field in fields(registry[each]) if field.init]
            assert sorted(option[0] for option in options_of(classes[each])) == sorted(wanted), each


def test_every_option_has_help(package):
    classes = [cls for group in components(package).values() for cls in group]
    classes += [target(package[path]) for path in (*SECTIONS.values(), *SFT_SECTIONS.values())]
    assert [(cls.name, option[0]) for cls in classes for option in options_of(cls) if not option[3]] == []


def test_named_choices_are_written_out(package):
    options = {option[0]: option for option in options_of(target(package["scorers.BranchingScore"]))}
    assert options["scope"][1:3] == ("Literal['trajectory', 'prompt', 'batch']", "'trajectory'")
    assert options["half_life"][1:3] == ("float | None", "32.0")


def test_public_names_are_documented(package):
    names = public_names(package, [module for modules in PUBLIC.values() for module in modules])
    assert min(len(each) for each in names.values()) > 0
    assert undocumented(package, names) == []


def test_names_and_parameters_without_documentation_are_found(tmp_path):
    (tmp_path / "small.py").write_text(
        '''
"""A module."""
__all__ = ["NUMBER", "Bare", "Child", "Text", "add", "double"]
NUMBER = 1
class Bare:
    def act(self): ...
class Text:
    """A class.

    Args:
        one: said.
    """
    def __init__(self, one, two): ...
    def act(self):
        """Acts."""
class Child(Text):
    """A class whose method stands above."""
    def act(self): ...
def add(left, right):
    """Adds.

    Args:
        left: said.
    """
def double(value):
    """Twice `value`."""
'''
    )
    package = load_package("small", tmp_path)
    assert undocumented(package, public_names(package, ["small"])) == [
        "small.NUMBER",
        "small.Bare",
        "small.Bare.act",
        "small.Child(two)",
        "small.Text(two)",
        "small.add(right)",
    ]

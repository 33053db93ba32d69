"""Every command, and every component, says what its options are."""

from __future__ import annotations

import sys

import pytest

from appo.__main__ import COMMANDS, main
from appo.commands.components import REGISTRIES
from appo.commands.trainer_parser import TrainerParser

COMPONENTS = [registry[name] for registry in REGISTRIES for name in registry]


@pytest.mark.parametrize("command", COMMANDS)
def test_usage_names_the_command(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py", command, "--help"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: appo {command} [")
    assert "Unvalidated<" not in text


def test_usage_of_a_component_names_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["__main__.py", "fit", "--rollout.scorer.help=BranchingScore"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.startswith("usage: appo fit [--rollout.scorer.half_life HALF_LIFE]")


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda cls: cls.__name__)
def test_options_of_a_component_have_types_that_are_checked(component):
    parser = TrainerParser()
    parser.add_class_arguments(component, "component")
    assert "Unvalidated<" not in parser.format_help()

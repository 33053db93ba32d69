"""The attacks that `appo doctor --security` makes, against each wall of this machine; and what they do without one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from appo.tools.python import sandbox
from appo.tools.python.attacks import ATTACKS, attacks_on
from appo.tools.python.attacks.attack import Attack, Scene, harm_of, staged, whole_code
from appo.tools.python.sandbox.settings import Wall
from tests.tools.python.own_processes import interpreters

WALLS: tuple[Wall, ...] = ("namespaces", "landlock")
CASES = [pytest.param(wall, attack, id=f"{wall}: {attack.name}") for wall in WALLS for attack in attacks_on(wall)]
# What something else keeps on some machine: Yama from tracing, a kernel without a family of sockets, a file system
# without attributes, a machine without a network.
HARMLESS_WITHOUT_A_WALL = re.compile(
    r"another's file: set an attribute|shared: resolve a name|shared: socket of AF_(VSOCK|CAN|ALG|PACKET)"
    r"|another process: (open its mem|trace|seize|(read|write) its memory|take its descriptor|list its map_files)"
)

_RUN = (
    "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.cell import Notebook; Notebook().run(sys.stdin.read())"
)
"""Runs code as a call does, with no wall and the rights of whoever trains."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with staged() as scene:
        yield scene


@pytest.mark.parametrize(("walled", "attack"), CASES, indirect=["walled"])
def test_attack_is_kept_off(walled, scene, attack):
    assert harm_of(attack, walled, scene) == ""


@pytest.mark.parametrize("walled", WALLS, indirect=True)
def test_interpreter_serves_on_and_no_process_is_left(walled):
    servers = interpreters()
    assert walled.open().run("1 + 1", 30.0, 1000).output == "2\n"
    assert interpreters() == servers
    assert len(servers) <= 2


def test_every_attack_has_a_name_of_its_own():
    for wall in WALLS:
        assert [name for name, count in Counter(attack.name for attack in attacks_on(wall)).items() if count > 1] == []
    assert sum(len(attacks_on(wall)) for wall in WALLS) > 500


@pytest.mark.parametrize("kind", ["another's file", "another process", "shared"])
def test_attacks_get_through_where_no_wall_stands(kind, tmp_path):
    attacks = [attack for attack in ATTACKS if attack.name.startswith(f"{kind}: ")]
    kept = [attack.name for attack in attacks if not _gets_through(attack, tmp_path)]
    assert [name for name in kept if not HARMLESS_WITHOUT_A_WALL.match(name)] == []
    assert len(kept) < len(attacks) / 3


def _gets_through(attack: Attack, folder) -> bool:
    with staged() as scene:
        before = scene.state()
        code = whole_code(attack, scene)
        command = [sys.executable, "-I", "-S", "-c", _RUN, str(Path(sandbox.__file__).parents[1])]
        said = subprocess.run(command, input=code, stdout=subprocess.PIPE, text=True, cwd=folder).stdout.strip()
        try:
            return scene.state() != before or not re.fullmatch(attack.held, said, re.DOTALL)
        except OSError:
            return True

"""`appo doctor --security` attacks the walls that there are, and its exit status says what came of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from appo.commands.doctor import security
from appo.commands.doctor.command import main
from appo.tools.python.attacks import attacks_on
from appo.tools.python.attacks.attack import Attack

NOBODY = 65534
PART = "another process: open its"


def run_doctor(*args: str, before: str = "pass", **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    code = f"import sys\n{before}\nfrom appo.commands.doctor.command import main\nsys.exit(main({list(args)!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


def test_each_attack_is_named_and_counted(walls, capsys, tmp_path):
    walls = [wall for wall in walls if wall != "limits"]
    if not walls:
        pytest.skip("this machine gives no wall")
    assert main(["--security", PART, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [attack.name for attack in attacks_on("namespaces") if PART in attack.name]
    assert len(names) > 10
    for wall in walls:
        assert [line.split(maxsplit=2)[2] for line in lines if line.startswith(f"held    {wall} ")] == names
        assert any(line.startswith(f"{wall}: {len(names)} of {len(names)} attacks held") for line in lines)
    found = json.loads((tmp_path / "security.json").read_text())
    assert found["walls"] == {wall: dict.fromkeys(names, "") for wall in walls}


def test_an_attack_that_gets_through_is_told_and_sets_the_exit_status(walls, monkeypatch, capsys):
    if "namespaces" not in walls and "landlock" not in walls:
        pytest.skip("this machine gives no wall")
    harmless = [Attack("print a number", "6 * 7"), Attack("print nothing", "None", "")]
    monkeypatch.setattr(security, "attacks_on", lambda wall: harmless)
    assert main(["--security"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^THROUGH \w+ +print a number: it printed '42'$", said, re.MULTILINE)
    assert re.search(r"^\w+: 1 of 2 attacks held, runs use it$", said, re.MULTILINE)


def test_a_machine_without_a_wall_has_an_exit_status_of_its_own():
    forbidden = "from tests.tools.python.own_walls import forbid\nforbid(['namespaces', 'landlock'])"
    done = run_doctor("--security", PART, before=forbidden)
    assert done.returncode == 3, done.stderr
    assert "namespaces: not on this machine (unshare: Operation not permitted)" in done.stdout
    assert "no wall: runs end at their start" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever tests is no root, and every other test shows what holds then")
def test_the_walls_hold_for_an_ordinary_user_too():
    try:
        done = run_doctor("--security", PART, user=NOBODY, group=NOBODY, extra_groups=[])
    except PermissionError:
        pytest.skip("root alone can read this Python")
    assert done.returncode == 0, done.stdout + done.stderr

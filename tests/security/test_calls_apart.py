"""One call cannot harm another, nor the server that runs them all."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from appo.core.trajectory import ToolCall
from appo.tools import PythonTool
from appo.tools.python.attacks.attack import SETTINGS
from appo.tools.python.client import Interpreter
from appo.tools.python.sandbox.removal import remove_tree
from tests.tools.python.own_processes import interpreters, wait_for_child


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
        "import os\nos.makedirs('a/b')\nos.symlink('/', 'a/b/root')\nos.mkdir('closed', 0)",
        "import os\nfor i in range(500):\n    open(str(i), 'w').close()\nos.mkfifo('fifo')",
    ],
    ids=["deep", "closed", "many"],
)
def test_folder_that_is_hard_to_remove_is_removed_and_the_next_call_works(walls, code):
    for wall in walls:
        interpreter = Interpreter(replace(SETTINGS, wall=wall))
        folder = interpreter._folder
        assert interpreter.open().run(code, 30.0, 1000).output == ""
        if wall != "namespaces":
            assert os.listdir(folder) == []
        assert interpreter.open().run("1 + 1", 30.0, 1000).output == "2\n"
        interpreter.stop()
        assert not os.path.exists(folder)


def test_removal_follows_no_link_and_raises_nothing(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "gone" / "inner").mkdir(parents=True)
    (tmp_path / "gone" / "inner" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove_tree(str(tmp_path / "gone"))
    remove_tree(str(tmp_path / "link"))
    remove_tree(str(tmp_path / "missing"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "kept", "link"]


def test_call_that_dies_slowly_leaves_the_interpreter_and_the_calls_beside_it(walls, monkeypatch):
    # No wait for its end at all: to the caller, every call dies slowly.
    monkeypatch.setattr("appo.tools.python.client._KILL_S", 0.0)
    interpreter = Interpreter(replace(SETTINGS, wall=walls[0]))
    servers = interpreters()
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(interpreter.open().run, "input if 0 else sum(range(10**7))", 60.0, 1000)
        wait_for_child(servers)
        assert interpreter.open().run("while True: pass", 0.2, 1000).end == "timeout"
        assert beside.result().output == "49999995000000\n"
    assert interpreters()[: len(servers)] == servers
    monkeypatch.undo()
    interpreter.stop()


def test_code_cannot_end_its_own_call_and_compute_on(keeping):
    session = keeping.open()
    forged = "import os, struct\nfor d in range(3, 9):\n    try:\n        os.write(d, {!r})\n    except OSError: pass\n"
    for said in (struct.pack(">?i", True, 0), struct.pack(">?i", False, -(2**31)), struct.pack(">?i", False, -11)):
        execution = session.run(forged.format(said) + "x = 0\nwhile True:\n    x += 1", 1.0, 1000)
        # Told of the end or not: it runs no longer, and nothing of what it said is believed.
        assert execution.end in ("exit", "timeout")
        assert execution.exit_code is None or 0 <= execution.exit_code <= 255
        if execution.is_alive:
            assert _stands_still()
        session.close()
        session = keeping.open()
    assert session.run("1 + 1", 30.0, 1000).output == "2\n"


def test_threads_stand_still_between_calls(walls):
    if "namespaces" not in walls:
        pytest.skip("behind Landlock there is no thread")
    interpreter = Interpreter(replace(SETTINGS, keep_variables=True))
    session = interpreter.open()
    loop = "import threading\ndef loop():\n    while True: pass\nthreading.Thread(target=loop, daemon=True).start()"
    assert session.run(loop, 30.0, 1000).is_alive
    assert _stands_still()
    assert session.run("1 + 1", 30.0, 1000).output == "2\n"
    interpreter.stop()


def test_process_that_is_not_its_childs_is_not_killed_by_signals_to_its_parent(keeping):
    session = keeping.open()
    code = (
        "import os, signal\n"
        "for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):\n"
        "    try:\n        os.kill(os.getppid(), number)\n    except PermissionError:\n        pass\n"
        "1 + 1"
    )
    execution = session.run(code, 30.0, 1000)
    assert (execution.output, execution.is_alive) == ("2\n", True)
    assert session.run("2 + 2", 30.0, 1000).output == "4\n"


def test_variables_of_one_trajectory_are_never_anothers(walls):
    tool = PythonTool(timeout_s=30.0, keep_variables=True)
    tool.start()
    code = "import random\nx = random.random()\nx"
    one, two, branch = object(), object(), object()
    of_one, of_two = tool.call_after([], code, one), tool.call_after([], code, two)
    ran = [ToolCall("python", code, of_two, None, 0.0, 0)]
    assert of_one != of_two
    assert tool.call_after(ran, "x", two) == of_two
    assert tool.call_after(ran, "x", branch) not in (of_one, of_two)
    assert tool.call_after(ran, "x") not in (of_one, of_two)
    tool.stop()


def _stands_still() -> bool:
    """Whether none of the processes that were started here computes while this one does."""
    before = _spent()
    sum(range(10**7))
    return _spent() == before


def _spent() -> int:
    """Processor time of the processes that were started here."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in interpreters()]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats)

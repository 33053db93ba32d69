import logging
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from appo.core.trajectory import ToolCall
from appo.tools import PythonTool, ToolError, ToolTimeoutError
from tests.tools.python.own_processes import interpreters, is_alive, parent, wait_for_child, wait_until_busy


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("print(1 + 1)", "2"),
        ("1 + 1", "2"),
        ("x = 3\nx * 2", "6"),
        ("'text'", "'text'"),
        ("print('a')\n'b'", "a\n'b'"),
        ("None", "(no output)"),
        ("x = 3", "(no output)"),
        ("", "(no output)"),
        ("def f():\n    return 4\n\nf()", "4"),
        ("import math\nmath.gcd(12, 18)", "6"),
        ("from dataclasses import dataclass\n\n@dataclass\nclass A:\n    x: int\n\nA(3)", "A(x=3)"),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('out')", "out\nerr\nout"),
        ("import os\nos.write(1, b'raw')\nNone", "raw"),
        ("import sys\nprint('bye')\nsys.exit()", "bye"),
        ("print('  indented')", "  indented"),
        ("'\\N{SNOWMAN}'", "'\N{SNOWMAN}'"),
        ("__name__", "'__main__'"),
        ("import pickle\n\nclass A:\n    pass\n\ntype(pickle.loads(pickle.dumps(A()))) is A", "True"),
    ],
)
def test_result_is_what_a_notebook_would_show(python, code, result):
    assert python(code) == result


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('before')\n1 / 0", "before\nZeroDivisionError: division by zero"),
        ("1 +", '  File "<python>", line 1\n    1 +\n       ^\nSyntaxError: invalid syntax'),
        ("input()", "EOFError: EOF when reading a line"),
        ("import sys\nsys.exit(3)", "Exit code 3."),
        ("import sys\nsys.exit('no good')", "no good"),
        (
            "import ctypes\nprint('last words')\nctypes.string_at(0)",
            "last words\nKilled by signal 11 (Segmentation fault).",
        ),
        ("x = 'x' * 10**10", "MemoryError"),
        ("x = []\nwhile True:\n    x.append(bytes(10**7))", "MemoryError"),
        ("open('f', 'wb').write(bytes(10**8))", "OSError: [Errno 27] File too large"),
    ],
)
def test_failure_is_told_in_the_last_lines_of_the_traceback(python, code, text):
    with pytest.raises(ToolError) as caught:
        python(code)
    assert str(caught.value) == text


def test_state_does_not_leak_between_calls(python):
    python("x = 1\nimport builtins\nbuiltins.y = 2\nopen('f', 'w').close()\nimport os\nos.environ['Z'] = '3'")
    with pytest.raises(ToolError, match="NameError: name 'x' is not defined"):
        python("x")
    with pytest.raises(ToolError, match="NameError: name 'y' is not defined"):
        python("y")
    assert python("import os\nos.listdir(), dict(os.environ)") == "([], {})"


def test_environment_and_packages_of_the_training_process_are_out_of_reach(python):
    assert python("import os, ctypes\nctypes.CDLL(None).getenv(b'PATH'), dict(os.environ)") == "(0, {})"
    with pytest.raises(ToolError, match="ModuleNotFoundError: No module named 'torch'"):
        python("import torch")
    with pytest.raises(ToolError, match="ModuleNotFoundError: No module named 'appo'"):
        python("import appo")


def test_random_numbers_differ_between_calls_but_sets_print_alike_in_every_interpreter(python):
    assert python("import random\nrandom.random()") != python("import random\nrandom.random()")
    other = PythonTool()
    other.start()
    letters = "{chr(97 + i) for i in range(20)}"
    assert other(letters) == python(letters)
    other.stop()


def test_endless_loop_ends_at_the_limit_and_the_next_call_works():
    tool = PythonTool(timeout_s=0.5)
    tool.start()
    before = interpreters()
    with pytest.raises(ToolTimeoutError) as caught:
        tool("print('begun')\nwhile True:\n    pass")
    assert str(caught.value) == "begun\nTimed out after 0.5 seconds."
    assert interpreters() == before
    assert tool("1 + 1") == "2"
    tool.stop()


def test_endless_output_is_cut_at_once(python):
    result = python("while True:\n    print('x' * 999)")
    assert result == "x" * 999 + "\n" + "x" * 999 + "\n" + "\n[cut after 2000 characters]"


def test_long_output_of_a_call_that_ends_is_cut():
    tool = PythonTool(max_output_chars=3)
    tool.start()
    assert tool("'\\N{SNOWMAN}' * 5") == "'\N{SNOWMAN}\N{SNOWMAN}\n[cut after 3 characters]"
    tool.stop()


def test_many_calls_at_once_get_their_own_answers(python):
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(python, [f"print({i} ** 2)" for i in range(96)]))
    assert results == [str(i**2) for i in range(96)]


def test_long_code_arrives_whole(python):
    lines = [f"x{i} = {i}" for i in range(50_000)]
    assert python("\n".join([*lines, "x49999"])) == "49999"


@pytest.mark.parametrize("which", [0, -1])
def test_interpreter_that_crashes_fails_its_calls_and_is_replaced_for_the_next(which):
    others = interpreters()
    tool = PythonTool(timeout_s=20.0)
    tool.start()
    before = [pid for pid in interpreters() if pid not in others]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(tool, "while True:\n    pass")
        wait_until_busy(wait_for_child(others + before))
        os.kill(before[which], signal.SIGKILL)
        with pytest.raises(ToolError, match="The interpreter was killed while the code ran"):
            call.result()
    assert tool("1 + 1") == "2"
    assert not set(before) & set(interpreters())
    tool.stop()
    assert interpreters() == others


def called(argument, failure=None):
    return ToolCall("python", argument, "", failure, 0.0, 0)


@pytest.fixture(scope="module")
def keeping():
    tool = PythonTool(timeout_s=20.0, keep_variables=True, max_sessions=2)
    tool.start()
    yield tool
    tool.stop()


def test_variables_are_forgotten_unless_they_are_to_be_kept(python):
    with pytest.raises(ToolError, match="NameError"):
        python.call_after([called("x = 1")], "x")


def test_variables_of_a_trajectory_are_kept_and_of_no_other(keeping):
    # Counted in the process itself: repeating the code would count anew.
    count = "import time\nstarted = time.monotonic_ns()\nstarted"
    trajectory, other = object(), object()
    started = keeping.call_after([], count, trajectory)
    assert keeping.call_after([], count, other) != started
    assert keeping.call_after([called(count)], "started", trajectory) == started
    with pytest.raises(ToolError, match="NameError"):
        keeping.call_after([], "started")


def test_branch_continues_from_its_own_calls_and_not_from_those_its_parent_made_later(keeping):
    keeping.call_after([], "x = [1]")
    assert keeping.call_after([called("x = [1]")], "x.append(2)\nx") == "[1, 2]"
    assert keeping.call_after([called("x = [1]")], "x.append(3)\nx") == "[1, 3]"
    later = [called("x = [1]"), called("x.append(2)\nx")]
    assert keeping.call_after(later, "x") == "[1, 2]"


def test_failed_calls_leave_what_they_had_done_and_timed_out_ones_nothing(keeping):
    earlier = [called("x = 1\n1 / 0", "error"), called("y = 2"), called("z = 3", "limit")]
    assert keeping.call_after(earlier, "x, y") == "(1, 2)"
    with pytest.raises(ToolError, match="NameError: name 'z'"):
        keeping.call_after(earlier, "z")
    with pytest.raises(ToolError, match="NameError: name 'x'"):
        keeping.call_after([called("x = 1"), called("while True: pass", "timeout")], "x")


def test_code_that_killed_its_process_is_followed_by_a_new_one_when_repeated(keeping):
    earlier = [called("x = 1"), called("import ctypes\nctypes.string_at(0)", "error"), called("y = 2")]
    with pytest.raises(ToolError, match="NameError: name 'x'"):
        keeping.call_after(earlier, "y\nx")


def test_processes_that_wait_are_no_more_than_allowed_and_made_again_when_missed(keeping):
    others = interpreters()
    for number in range(5):
        keeping.call_after([], f"x = {number}", object())
    assert len(set(interpreters()) - set(others)) == 2 * keeping.max_sessions
    assert keeping.call_after([called("x = 0")], "x") == "0"


def test_process_that_dies_while_it_waits_is_made_again_by_the_same_interpreter(keeping):
    before = interpreters()
    trajectory = object()
    keeping.call_after([], "x = 'dies'", trajectory)
    pid = wait_for_child(before)
    server = parent(pid)
    os.kill(pid, signal.SIGKILL)
    while is_alive(pid):
        os.sched_yield()
    # The server does one thing after the other: once it has served this, it is done with the death.
    keeping.call_after([], "1")
    assert keeping.call_after([called("x = 'dies'")], "x", trajectory) == "'dies'"
    assert is_alive(server)


def test_packages_can_be_imported_and_preloaded_where_that_is_allowed():
    tool = PythonTool(timeout_s=60.0, packages=True, preload=["numpy"])
    tool.start()
    assert tool("import sys\n'numpy' in sys.modules") == "True"
    assert tool("import numpy\nint(numpy.arange(4).reshape(2, 2).sum())") == "6"
    tool.stop()


def test_module_that_cannot_be_preloaded_stops_the_start():
    others = interpreters()
    tool = PythonTool(preload=["numpy"])
    with pytest.raises(ValueError, match=r"preload must name modules that calls can import, got No module .*numpy"):
        tool.start()
    assert interpreters() == others


def test_log_says_once_which_isolation_is_in_force(caplog, has_namespaces):
    caplog.set_level(logging.INFO)
    tool = PythonTool()
    with pytest.raises(RuntimeError, match="must be started"):
        tool.isolation  # noqa: B018
    tool.start()
    tool.start()
    tool("1")
    tool.stop()
    messages = [record.getMessage() for record in caplog.records if "isolated by" in record.getMessage()]
    assert len(messages) == 1
    assert ("namespaces (user, mount, process, network, IPC)" in messages[0]) == has_namespaces


def without(walls, code):
    """Runs code in a process that may not build some walls; namespaces are forbidden in most containers."""
    forbid = (
        "import logging\n"
        "logging.basicConfig(level='INFO', format='%(levelname)s %(message)s')\n"
        "from appo.tools import PythonTool\n"
        "from tests.tools.python.own_walls import forbid\n"
        f"forbid({walls})\n"
    )
    done = subprocess.run([sys.executable, "-c", forbid + code], capture_output=True, text=True, timeout=60.0)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_machine_without_any_wall_is_told_in_a_warning_where_isolation_is_not_required_and_limits_hold():
    out, log = without(
        ["namespaces", "landlock"],
        "tool = PythonTool(timeout_s=0.5, require_isolation=False)\n"
        "tool.start()\n"
        "print(tool('1 + 1'))\n"
        "for code in ('while True: pass', 'import os\\nos.kill(os.getppid(), 9)', 'bytes(10**10)'):\n"
        "    try:\n"
        "        tool(code)\n"
        "    except Exception as error:\n"
        "        print(error)\n"
        "print(tool('2 + 2'))\n"
        "tool.stop()",
    )
    assert out.splitlines() == [
        "2",
        "Timed out after 0.5 seconds.",
        "PermissionError: [Errno 1] Operation not permitted",
        "MemoryError",
        "4",
    ]
    assert "WARNING python tool: nothing keeps code from this machine (namespaces: unshare: Operation not" in log
    assert "INFO python tool: isolated by limits alone: files and processes as user" in log


def test_machine_without_any_wall_is_refused_with_what_to_do():
    out, _ = without(
        ["namespaces", "landlock"],
        "try:\n    PythonTool().start()\nexcept ValueError as error:\n    print(error)",
    )
    assert "require_isolation must be false on a machine that cannot keep code from it, got true (namespaces: " in out
    assert "landlock: " in out
    assert "allow namespaces to users, or take Linux 6.2 or newer with Landlock" in out


def test_landlock_stands_in_where_there_are_no_namespaces(walls):
    if "landlock" not in walls:
        pytest.skip("this machine gives no landlock")
    out, _ = without(
        ["namespaces"],
        "tool = PythonTool()\ntool.start()\nprint(tool.isolation)\nprint(tool('1 + 1'))\ntool.stop()",
    )
    assert out.splitlines() == [
        "Landlock, read-only system files, allowed system calls alone, limits, one process a call",
        "2",
    ]


def test_works_again_after_stop_and_start():
    tool = PythonTool()
    with pytest.raises(RuntimeError, match="must be started"):
        tool("1")
    for _ in range(2):
        tool.start()
        tool.start()
        assert tool("1 + 1") == "2"
        tool.stop()
        tool.stop()
    with pytest.raises(RuntimeError, match="must be started"):
        tool("1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0.0}, r"timeout_s must be positive and finite, got 0.0"),
        ({"timeout_s": float("inf")}, r"timeout_s must be positive and finite, got inf"),
        ({"memory_mb": 10}, r"memory_mb must be at least 64, .* got 10"),
        ({"max_output_chars": 0}, r"max_output_chars must be positive, got 0"),
        ({"disk_mb": 0}, r"disk_mb must be positive, got 0"),
        ({"max_processes": 0}, r"max_processes must be positive, got 0"),
        ({"max_sessions": 0}, r"max_sessions must be positive, got 0"),
        ({"max_open_files": 3}, r"max_open_files must be at least 16, .* got 3"),
        ({"preload": "numpy"}, r"preload must be a list of modules, got 'numpy'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PythonTool(**options)

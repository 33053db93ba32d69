"""The fork server and its caller, with namespaces and with limits alone."""

import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from appo.tools import ToolError
from appo.tools.python.attacks.attack import SETTINGS
from appo.tools.python.client import Interpreter, InterpreterLostError
from tests.tools.python.own_processes import descendants, interpreters, is_alive, wait_for_child, wait_until_busy


@pytest.fixture(params=["namespaces", "landlock", "limits"])
def settings(request, walls):
    if request.param not in walls:
        pytest.skip(f"this machine gives no {request.param}")
    return replace(SETTINGS, wall=request.param)


@pytest.fixture
def interpreter(settings):
    started = Interpreter(settings)
    yield started
    started.stop()


def run(interpreter, code, timeout_s=30.0, max_bytes=1000):
    return interpreter.open().run(code, timeout_s, max_bytes)


def test_call_ends_by_itself_in_time_or_with_too_much_output(interpreter):
    ended = run(interpreter, "print('x')\nimport sys\nsys.exit(3)")
    assert (ended.output, ended.end, ended.exit_code, ended.is_alive) == ("x\n", "exit", 3, False)
    late = run(interpreter, "print('x')\nwhile True:\n    pass", timeout_s=0.5)
    assert (late.output, late.end) == ("x\n", "timeout")
    long = run(interpreter, "while True:\n    print('x' * 99)")
    assert long.end == "cut"
    assert len(long.output) > 1000


def test_signal_that_ends_a_call_is_told(interpreter):
    ended = run(interpreter, "import ctypes\nprint('x')\nctypes.string_at(0)")
    assert (ended.output, ended.exit_code) == ("x\n", -signal.SIGSEGV)


def test_working_folder_is_empty_and_removed(interpreter):
    code = "import os\nopen('file', 'w').close()\nos.makedirs('a/b')\nprint(os.getcwd())"
    folder = run(interpreter, code).output.strip()
    assert not os.path.exists(folder)
    assert run(interpreter, "import os\nos.listdir()").output == "[]\n"


def test_working_folder_leaves_no_mount_behind(interpreter):
    mounts = Path(f"/proc/{interpreters()[-1]}/mountinfo")
    before = mounts.read_text()
    run(interpreter, "open('file', 'w').close()")
    assert mounts.read_text() == before


def test_namespaces_cannot_be_made_by_code(interpreter):
    if platform.machine() != "x86_64":
        pytest.skip("knows the number of clone on x86_64 alone")
    code = "import ctypes\nctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0)"
    assert run(interpreter, code).output == "-1\n"


def test_sockets_and_threads_beyond_the_limit_are_refused(interpreter):
    assert "PermissionError" in run(interpreter, "import socket\nsocket.socket()").output
    code = "import threading\n[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(99)]"
    if os.geteuid() != 0 or interpreter.report.user_id != 0:
        assert "can't start new thread" in run(interpreter, code).output


def test_call_for_which_there_is_no_process_fails_alone(interpreter):
    if interpreter.report.user_id == 0:
        pytest.skip("root has as many processes as it likes")
    server = interpreters()[-1]
    try:
        before = resource.prlimit(server, resource.RLIMIT_NPROC)
        resource.prlimit(server, resource.RLIMIT_NPROC, (0, before[1]))
    except PermissionError:
        pytest.skip("may not change the limits of another process")
    with pytest.raises(ToolError, match="no room for another process"):
        run(interpreter, "1")
    resource.prlimit(server, resource.RLIMIT_NPROC, before)
    assert run(interpreter, "1").output == "1\n"
    assert interpreters()[-1] == server


def test_nothing_is_left_when_a_process_that_was_killed_is_replaced(settings):
    interpreter = Interpreter(settings)
    pid = interpreters()[-1]
    os.kill(pid, signal.SIGKILL)
    while interpreters():
        interpreter.kill()
    with pytest.raises(InterpreterLostError):
        run(interpreter, "1")
    interpreter.stop()
    assert interpreters() == []


def test_variables_stay_in_a_session_that_keeps_them(settings):
    interpreter = Interpreter(replace(settings, keep_variables=True))
    session = interpreter.open()
    first = session.run("x = 41\nprint('begun')", 30.0, 1000)
    assert (first.output, first.is_alive) == ("begun\n", True)
    assert session.run("1 / 0", 30.0, 1000).is_alive
    assert session.run("import sys\nsys.exit(2)", 30.0, 1000).exit_code == 2
    assert session.run("x + 1", 30.0, 1000).output == "42\n"
    assert "NameError" in interpreter.open().run("x", 30.0, 1000).output
    dead = session.run("import ctypes\nctypes.string_at(0)", 30.0, 1000)
    assert (dead.exit_code, dead.is_alive) == (-signal.SIGSEGV, False)
    interpreter.stop()


def test_session_that_is_closed_leaves_no_process(settings):
    interpreter = Interpreter(replace(settings, keep_variables=True))
    server = interpreters()
    session = interpreter.open()
    session.run("x = 1", 30.0, 1000)
    # It and the process that stands between it and the caller.
    assert len(interpreters()) == len(server) + 2
    session.close()
    assert interpreters() == server
    interpreter.stop()


def test_interpreter_that_hangs_is_killed_with_its_call(settings, monkeypatch):
    monkeypatch.setattr("appo.tools.python.client._KILL_S", 0.5)
    monkeypatch.setattr("appo.tools.python.client._SIGN_S", 0.5)
    interpreter = Interpreter(settings)
    server = interpreters()
    assert run(interpreter, "1").output == "1\n"
    os.kill(server[-1], signal.SIGSTOP)
    assert run(interpreter, "1", timeout_s=0.1).end == "timeout"
    with pytest.raises(InterpreterLostError):
        run(interpreter, "1")
    interpreter.stop()
    assert [pid for pid in server if is_alive(pid)] == []


def test_stop_ends_calls_and_leaves_neither_process_nor_file(settings):
    interpreter = Interpreter(settings)
    server = interpreters()
    ends = []
    thread = threading.Thread(target=lambda: ends.append(run(interpreter, "while True:\n    pass", 60.0).end))
    thread.start()
    wait_until_busy(wait_for_child(server))
    pids = interpreters()
    interpreter.stop()
    thread.join(30.0)
    assert ends == ["lost"]
    assert [pid for pid in pids if is_alive(pid)] == []


def test_interpreter_goes_when_the_training_process_dies(settings):
    code = (
        "import os\n"
        "from appo.tools.python.client import Interpreter\n"
        "from appo.tools.python.sandbox.settings import Settings\n"
        f"interpreter = Interpreter({settings!r})\n"
        "print(interpreter._folder, flush=True)\n"
        "os._exit(0)"
    )
    # The interpreter holds the error stream as well: reading to its end takes until the interpreter has ended.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60.0)
    assert done.stderr == ""
    assert "appo-python-" in done.stdout
    assert not os.path.exists(done.stdout.strip())


def test_time_limit_holds_for_code_that_the_process_does_not_read(settings, monkeypatch):
    monkeypatch.setattr("appo.tools.python.client._SIGN_S", 0.5)
    before = descendants(os.getpid())  # of servers, perhaps, that other tests share
    interpreter = Interpreter(settings)
    os.kill(interpreters()[-1], signal.SIGSTOP)
    begin = time.monotonic()
    assert run(interpreter, "#" * 10**7, timeout_s=0.2).end == "timeout"
    assert time.monotonic() - begin < 20.0
    interpreter.stop()
    assert descendants(os.getpid()) == before

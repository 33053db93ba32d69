"""Code that means harm: none of it succeeds, none of its processes is left, and the next call works."""

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from appo.tools import PythonTool, ToolError, ToolTimeoutError
from tests.tools.python.own_processes import interpreters

MAX_PROCESSES = 4
DISK_MB = 2


@pytest.fixture(scope="module")
def sandbox(has_namespaces):
    if not has_namespaces:
        pytest.skip("this machine gives no namespaces")
    tool = PythonTool(
        timeout_s=30.0,
        memory_mb=128,
        disk_mb=DISK_MB,
        max_processes=MAX_PROCESSES,
        max_open_files=32,
        require_isolation=True,
    )
    tool.start()
    yield tool
    tool.stop()


@pytest.fixture(autouse=True)
def unharmed(sandbox):
    before = interpreters()
    yield
    assert interpreters() == before, "an interpreter died, or a process outlived its call"
    assert sandbox("1 + 1") == "2"


@pytest.fixture
def impatient(sandbox):
    tool = PythonTool(timeout_s=0.5, require_isolation=True)
    tool.start()
    yield tool
    assert len(interpreters()) == 4
    assert tool("1 + 1") == "2"
    tool.stop()


def fails(tool, code):
    with pytest.raises(ToolError) as caught:
        tool(code)
    assert not isinstance(caught.value, ToolTimeoutError)
    return str(caught.value)


def test_fork_bomb_is_limited(sandbox):
    assert "BlockingIOError" in fails(sandbox, "import os\nwhile True:\n    os.fork()")


def test_endless_loop_that_ignores_every_signal_ends_at_the_limit(impatient):
    code = (
        "import signal\n"
        "for number in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "while True:\n"
        "    pass"
    )
    with pytest.raises(ToolTimeoutError):
        impatient(code)


def test_recursion_that_overflows_the_stack_kills_only_itself(sandbox):
    code = "import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f\n    [*map(lambda _: f(), [0])]\nf()"
    assert re.search("Killed by signal 11|MemoryError|RecursionError", fails(sandbox, code))


def test_gigabyte_of_output_is_cut(sandbox):
    result = sandbox("import os\nfor _ in range(2**10):\n    os.write(1, b'x' * 2**20)\nwhile True:\n    pass")
    assert result == "x" * 2000 + "\n[cut after 2000 characters]"


def test_nothing_outside_the_working_folder_can_be_written(sandbox, tmp_path):
    folders = [str(folder) for folder in (tmp_path, Path.home(), Path.cwd(), sys.base_prefix)]
    folders += ["/", "/usr", "/usr/bin", "/etc", "/var", "/dev"]
    code = (
        "import errno, os\n"
        "errors = set()\n"
        f"for folder in {folders}:\n"
        "    path = f'{folder}/attack'\n"
        "    for attempt in (lambda: open(path, 'w'), lambda: os.mkdir(path), lambda: os.chmod(folder, 0o777)):\n"
        "        try:\n"
        "            attempt()\n"
        "            errors.add(folder)\n"
        "        except OSError as error:\n"
        "            errors.add(errno.errorcode[error.errno])\n"
        "sorted(errors)"
    )
    # Not for want of rights: those of the user who trains may reach far.
    assert sandbox(code) == "['ENOENT', 'EROFS']"
    assert not any(os.path.exists(f"{folder}/attack") for folder in folders)


def test_files_of_the_user_cannot_be_read(sandbox, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "secret").chmod(0o777)
    for path in (tmp_path / "secret", Path(__file__), Path("/etc/passwd"), Path("/var"), Path("/run")):
        assert path.exists()
        assert "FileNotFoundError" in fails(sandbox, f"import os\nos.stat({str(path)!r})")


def test_home_folder_holds_nothing_but_the_way_to_python(sandbox):
    code = (
        "import os\n"
        f"files = [name for folder, _, names in os.walk({str(Path.home())!r}) for name in names\n"
        f"         if not folder.startswith({os.path.realpath(sys.base_prefix)!r})]\n"
        "files"
    )
    assert sandbox(code) == "[]"


def test_processes_and_mounts_cannot_be_shown_by_mounting_them(sandbox):
    code = (
        "import ctypes, os\n"
        "os.mkdir('p')\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "kinds = (b'proc', b'sysfs', b'tmpfs', b'devtmpfs')\n"
        "[(libc.mount(kind, b'p', kind, 0, None), ctypes.get_errno()) for kind in kinds]"
    )
    assert sandbox(code) == str([(-1, 1)] * 4)


def test_files_of_other_calls_cannot_be_seen(sandbox):
    other = PythonTool(keep_variables=True, timeout_s=30.0)
    other.start()
    folder = other.call_after((), "import os\nopen('secret', 'w').close()\nprint(os.getcwd())", object())
    # It waits for more code, its file with it.
    assert len(interpreters()) == 6
    assert other(f"import os\nos.listdir({folder!r}), os.listdir('/tmp')") == "([], [])"
    assert sandbox(f"import os\nos.listdir({folder!r}), os.listdir('/tmp')") == "([], [])"
    other.stop()


def test_shell_found_through_subclasses_is_in_the_same_cage(sandbox, tmp_path):
    (tmp_path / "secret").write_text("secret")
    code = (
        "classes = ().__class__.__base__.__subclasses__()\n"
        "popen = [c for c in classes if c.__name__ == '_wrap_close'][0].__init__.__globals__['popen']\n"
        f"popen('cat {tmp_path}/secret /etc/shadow /proc/1/environ 2>&1; kill -9 {os.getpid()} 2>&1').read()"
    )
    result = sandbox(code)
    assert result.count("No such file or directory") == 3
    assert "No such process" in result


def test_network_is_out_of_reach(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        connect = f"import socket\nsocket.create_connection({server.getsockname()}, timeout=1.0)"
        assert "PermissionError" in fails(sandbox, connect)
        nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {connect!r}]).returncode"
        assert "PermissionError" in sandbox(nested)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_rights_cannot_be_gained(sandbox):
    code = (
        "import os\n"
        "gained = []\n"
        "for change in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.nice(-5),\n"
        "               lambda: os.mknod('disk', 0o60666, os.makedev(8, 0)), lambda: os.sethostname('x')):\n"
        "    try:\n"
        "        change()\n"
        "        gained.append(change)\n"
        "    except (OSError, AttributeError):\n"
        "        pass\n"
        "gained"
    )
    assert sandbox(code) == "[]"

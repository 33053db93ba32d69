"""Code reaches nothing of the training process: not its memory, environment, files, nor its existence by signals."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from appo.tools.python.client import Interpreter
from tests.tools.python.own_walls import SETTINGS

SECRET = "the accepted answer is 42"


def test_memory_and_environment_of_the_training_process_cannot_be_read(attack):
    code = (
        "import os\n"
        "opened = []\n"
        "for name in ('mem', 'environ', 'cmdline', 'maps', 'fd', 'root', 'cwd', 'exe', 'status', 'task'):\n"
        f"    path = f'/proc/{os.getpid()}/{{name}}'\n"
        "    for attempt in (lambda: os.open(path, 2), lambda: os.open(path, 0), lambda: os.listdir(path)):\n"
        "        try:\n"
        "            attempt()\n"
        "            opened.append(name)\n"
        "        except OSError:\n"
        "            pass\n"
        "opened"
    )
    assert attack(code) == "[]"


def test_files_of_the_training_process_can_be_neither_read_nor_changed(attack, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    # The walls must keep it, and not the rights of whoever runs the code.
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o755 != 0o755:
            path.chmod(0o755)
    secret.chmod(0o666)
    before = secret.stat()
    code = (
        "import os, shutil\n"
        f"path, folder = {str(secret)!r}, {str(tmp_path)!r}\n"
        "attempts = {\n"
        "    'read': lambda: open(path).read(),\n"
        "    'write': lambda: open(path, 'w'),\n"
        "    'append': lambda: open(path, 'a'),\n"
        "    'cut': lambda: os.truncate(path, 0),\n"
        "    'open to cut': lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),\n"
        "    'list': lambda: os.listdir(folder),\n"
        "    'remove': lambda: os.unlink(path),\n"
        "    'rename': lambda: os.rename(path, path + '2'),\n"
        "    'link': lambda: os.link(path, 'linked'),\n"
        "    'through a link': lambda: (os.symlink(path, 'link'), open('link').read()),\n"
        "    'move here': lambda: os.rename(path, 'here'),\n"
        "    'create': lambda: open(folder + '/new', 'w'),\n"
        "    'folder': lambda: os.mkdir(folder + '/new'),\n"
        "    'pipe': lambda: os.mkfifo(folder + '/new'),\n"
        "    'mode': lambda: os.chmod(path, 0),\n"
        "    'times': lambda: os.utime(path, (1, 1)),\n"
        "    'owner': lambda: os.chown(path, os.getuid(), os.getgid()),\n"
        "    'attribute': lambda: os.setxattr(path, 'user.x', b'x'),\n"
        "    'execute': lambda: os.execv(path, ['x']),\n"
        "}\n"
        "done = []\n"
        "for name, attempt in attempts.items():\n"
        "    try:\n"
        "        attempt()\n"
        "        done.append(name)\n"
        "    except OSError:\n"
        "        pass\n"
        "done"
    )
    assert attack(code) == "[]"
    after = secret.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)
    assert os.listdir(tmp_path) == ["secret"]


@pytest.mark.parametrize("kind", ["signal", "owner of a pipe", "limits", "priority", "scheduler", "cores"])
def test_training_process_cannot_be_killed_or_slowed(behind_landlock, kind):
    pid = os.getpid()
    code = {
        "signal": f"os.kill({pid}, 0)",
        "owner of a pipe": f"r, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {pid})",
        "limits": f"resource.prlimit({pid}, resource.RLIMIT_CPU)",
        "priority": f"os.setpriority(os.PRIO_PROCESS, {pid}, 19)",
        "scheduler": f"os.sched_setscheduler({pid}, os.SCHED_IDLE, os.sched_param(0))",
        "cores": f"os.sched_setaffinity({pid}, [0])",
    }[kind]
    assert behind_landlock(f"import fcntl, os, resource\n{code}").startswith("PermissionError")


def test_files_of_calls_that_run_at_once_are_apart_without_namespaces(behind_landlock):
    code = "import os\ntry:\n    os.listdir('..')\nexcept OSError as error:\n    print(error.errno)\nos.listdir()"
    assert behind_landlock(code) == "13\n[]"


def test_own_folder_can_be_used_without_namespaces(behind_landlock):
    code = (
        "import os, tempfile\n"
        "os.mkdir('d')\n"
        "open('d/f', 'w').write('x')\n"
        "os.rename('d/f', 'f')\n"
        "open('f').read(), tempfile.TemporaryFile().write(b'xy'), open('/dev/null', 'w').write('a')"
    )
    assert behind_landlock(code) == "('x', 2, 1)"


def test_how_the_interpreter_was_started_shows_nothing_of_the_settings(attack):
    seen = attack("import sys\nsys.argv, sys.orig_argv, sys.flags, sys.path, sys.prefix")
    assert "memory" not in seen
    assert "appo" not in seen
    assert os.path.realpath(sys.prefix) == os.path.realpath(sys.base_prefix) or sys.prefix not in seen


def test_answers_of_the_environments_that_come_with_appo_cannot_be_drawn_where_packages_can_be_imported(walls):
    import appo

    folder = Path(appo.__file__).parent
    for wall in walls[:-1]:
        interpreter = Interpreter(replace(SETTINGS, wall=wall, packages=True, memory_mb=1024))
        code = (
            "found = []\n"
            "try:\n    from appo.environments.problems import WorldProblems\n    found.append('import')\n"
            "except (ImportError, OSError):\n    pass\n"
            f"try:\n    open({str(folder / 'environments' / 'problems.py')!r})\n    found.append('read')\n"
            "except OSError:\n    pass\n"
            "import numpy\n"
            "found"
        )
        assert interpreter.open().run(code, 60.0, 1000).output == "[]\n", wall
        interpreter.stop()

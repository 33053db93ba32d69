"""What code of a policy might try, as data: `appo doctor --security` and the tests make the same attempts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appo.tools.python.client import Execution, Interpreter, InterpreterLostError
from appo.tools.python.sandbox.settings import Settings, Wall

SETTINGS = Settings(
    memory_mb=256,
    cpu_s=60,
    disk_mb=4,
    max_processes=4,
    max_open_files=32,
    packages=False,
    preload=(),
    keep_variables=False,
    wall="namespaces",
)
"""Of an interpreter that is attacked."""

REFUSED = "'(EPERM|EACCES|ENOENT|EROFS|ESRCH|EXDEV|ENOSYS|EAGAIN)'"
"""What `attempt` says of something that a wall has kept; other errors would come of an attempt that makes no sense."""

_MAX_BYTES = 10_000
_PRELUDE = """\
import ctypes, errno, fcntl, os, resource, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    passed = [*arguments, *[0] * (6 - len(arguments))]
    answer = libc.syscall(number, *map(ctypes.c_long, passed))
    if answer == -1:
        raise OSError(ctypes.get_errno(), 'refused')
    return answer
def attempt(act):
    try:
        return f'done: {act()!r}'
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
"""
_VICTIM = "import sys; accepted = sys.stdin.readline(); print(flush=True); sys.stdin.read()"


@dataclass(frozen=True)
class Attack:
    """Code that means harm, and what it prints where it does none.

    Attributes:
        name: in a few words.
        code: finds `pid` (of a process of the user who trains), `secret` (a file of theirs that anybody may write),
            `folder` (that it lies in), `attempt` and `call`, and modules for it.
        held: regular expression of all that it prints if the walls have held.
        ends: how it may end then.
        wall: the one that it is meant for; None for all.
        timeout_s: after which it is killed.
    """

    name: str
    code: str
    held: str = REFUSED
    ends: Collection[str] = ("exit",)
    wall: Wall | None = None
    timeout_s: float = 30.0


@dataclass(frozen=True)
class Scene:
    """What there is to be attacked.

    Attributes:
        pid: of a process that knows an answer.
        secret: file with an answer, in a folder of its own.
    """

    pid: int
    secret: Path

    def state(self) -> tuple[object, ...]:
        """What no attack may change."""
        status = self.secret.stat()
        kept = self.secret.read_text(), sorted(os.listdir(self.secret.parent)), status.st_mode, status.st_mtime_ns
        alive = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        # Whether it is stopped or dead, its priority and its niceness.
        return (
            *kept,
            alive[0] in "TtZX",
            alive[15],
            alive[16],
            os.sched_getscheduler(self.pid),
            os.sched_getaffinity(self.pid),
        )


@contextmanager
def staged() -> Iterator[Scene]:
    """Sets the scene: a process and a file that the rights of files alone would not keep from anybody."""
    with tempfile.TemporaryDirectory(prefix="appo-secret-") as folder:
        Path(folder).chmod(0o755)
        secret = Path(folder, "secret")
        secret.write_text("the accepted answer is 42")
        secret.chmod(0o777)
        command, environment = [sys.executable, "-I", "-S", "-c", _VICTIM], {"APPO_KEY": "the key is 42"}
        with subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        ) as victim:
            assert victim.stdin is not None
            assert victim.stdout is not None
            victim.stdin.write("the accepted answer is 42\n")
            victim.stdin.flush()
            victim.stdout.readline()
            try:
                yield Scene(victim.pid, secret)
            finally:
                victim.kill()


def whole_code(attack: Attack, scene: Scene) -> str:
    """The code of an attack with what it finds."""
    secret = str(scene.secret)
    facts = f"pid, secret, folder = {scene.pid}, {secret!r}, {os.path.dirname(secret)!r}\n"
    return _PRELUDE + facts + attack.code


def harm_of(attack: Attack, interpreter: Interpreter, scene: Scene) -> str:
    """Makes an attack.

    Args:
        attack: to make.
        interpreter: behind the wall that is to hold.
        scene: what may be harmed.

    Returns:
        What has got through, in words; empty if nothing has.
    """
    before = scene.state()
    try:
        execution = interpreter.open().run(whole_code(attack, scene), attack.timeout_s, _MAX_BYTES)
    except InterpreterLostError:
        return "the interpreter had ended before"
    if scene.state() != before:
        return "the file or the process outside has changed"
    return said_of(attack, execution)


def said_of(attack: Attack, execution: Execution) -> str:
    """What the end of an attack says has got through; empty if nothing has."""
    if execution.end not in attack.ends:
        return f"it ended by {execution.end} and printed {execution.output[:100]!r}"
    if not re.fullmatch(attack.held, execution.output.strip(), re.DOTALL):
        return f"it printed {execution.output.strip()[:100]!r}"
    return ""

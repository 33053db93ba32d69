"""How the fork server starts: behind its wall, with what calls find loaded."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import sys

from . import landlock, namespaces
from .linux import IS_LINUX, PR_SET_PDEATHSIG, prctl
from .removal import remove_tree
from .seccomp import make_filter
from .server import Server
from .settings import Report, Settings

_PRELOADED = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "random", "re", "statistics", "string", "time", "typing"),
)
"""Modules that agents often import; a fork finds them loaded."""
_PACKAGE = os.path.realpath(os.path.join(os.path.dirname(__file__), *3 * [os.pardir]))
"""That this one lies in."""


def _prepare(settings: Settings) -> None:
    """Loads what calls find loaded; the environment goes last, since packages read it when they are imported."""
    for name in (*_PRELOADED, *settings.preload):
        importlib.import_module(name)
    for name in [name for name in os.environ if not (settings.packages and name.endswith("_NUM_THREADS"))]:
        del os.environ[name]
    sys.argv[1:] = []
    for stream in (sys.stdout, sys.stderr):
        assert hasattr(stream, "reconfigure")
        # Whole lines, so that output and errors keep their order and a process that is killed has said what it printed.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    gc.freeze()


def _readable(settings: Settings) -> list[str]:
    """Where Python, and the packages if calls may import them, are found; parents before what lies in them."""
    paths = {sys.base_prefix, sys.base_exec_prefix}
    if settings.packages:
        paths |= {sys.prefix, sys.exec_prefix, *(path for path in sys.path if os.path.isdir(path))}
    return sorted({real for path in paths for real in (os.path.abspath(path), os.path.realpath(path))}, key=len)


def _hidden() -> list[str]:
    """Where our own package lies, in every copy that could be imported: environments and rewards know answers."""
    copies = {os.path.join(os.path.realpath(path), os.path.basename(_PACKAGE)) for path in sys.path}
    return sorted({_PACKAGE, *copies})


def _enter_namespaces(control: socket.socket, settings: Settings) -> int:
    """Goes on as a child in namespaces; returns the descriptor of its process namespace. The parent waits for it."""
    proc = namespaces.enter_server(os.getcwd(), _readable(settings), _hidden())
    pid = os.fork()
    if pid != 0:
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
        control.close()
        os.waitpid(pid, 0)
        os._exit(0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    own_processes = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    os.close(proc)
    return own_processes


def _check_landlock() -> None:
    """Raises OSError where Landlock and the filter together are no wall."""
    if not IS_LINUX:
        raise OSError("there is no Landlock but on Linux")
    if make_filter(own_world=False) is None:
        raise OSError(f"no table of system calls for {os.uname().machine}")
    if (version := landlock.version()) < landlock.MIN_VERSION:
        raise OSError(f"Landlock has version {version} and must have at least {landlock.MIN_VERSION}, as in Linux 6.2")


def _leave_root() -> None:
    """Becomes nobody, unless nobody could read the standard library or root may not change user: then all stays."""
    with contextlib.suppress(OSError):
        os.seteuid(namespaces.NOBODY)
        can_read = os.access(os.__file__, os.R_OK, effective_ids=True)
        os.seteuid(0)
        if can_read:
            os.chown(".", namespaces.NOBODY, namespaces.NOBODY)
            namespaces.become_nobody()


def main() -> None:
    """Serves the control socket; its descriptor stands on the command line, the settings come by standard input."""
    control, settings = socket.socket(fileno=int(sys.argv.pop())), Settings.load(sys.stdin.readline())
    # Whatever runs here reads nothing, and shows nothing of how it was started.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    del sys.orig_argv[1:]
    folder, own_processes = os.getcwd(), -1
    if IS_LINUX:
        # When memory runs out, a call should go before the training process; only a preference, so it may fail.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    try:
        if settings.wall == "namespaces":
            own_processes = _enter_namespaces(control, settings)
        elif settings.wall == "landlock":
            _check_landlock()
    except OSError as error:
        control.sendall(Report(no_wall=error.strerror or str(error)).dump())
        return
    if settings.wall != "namespaces" and IS_LINUX and namespaces.is_root_of_machine():
        _leave_root()
    try:
        _prepare(settings)
    except ImportError as error:
        control.sendall(Report(no_module=str(error)).dump())
        return
    Server(control, settings, own_processes, [*namespaces.SYSTEM, *_readable(settings)], _hidden()).serve()
    if settings.wall != "namespaces":
        remove_tree(folder)

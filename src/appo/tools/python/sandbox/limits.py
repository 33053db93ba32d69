"""What the process of a call may use."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence

from . import landlock, namespaces
from .linux import IS_LINUX, PR_SET_PDEATHSIG, drop_capabilities, prctl
from .seccomp import install_filter
from .settings import Settings

_MAX_SIGNALS = 64
"""Signals that wait to be taken; they are counted together with those of the user's other processes."""


def confine(
    settings: Settings, system_calls: bytes | None, folder: str, readable: Sequence[str], hidden: Sequence[str]
) -> None:
    """Gives the process its working folder and takes what it may not have.

    Args:
        settings: of every call.
        system_calls: the filter, or None for an architecture that has none.
        folder: where it works, unless it gets one in namespaces of its own.
        readable: files and folders that Landlock leaves to be read.
        hidden: what it does not, although it lies there.

    Raises:
        OSError: if that fails, or whoever started the process is gone.
    """
    parent = os.getppid()
    if settings.wall == "namespaces":
        namespaces.enter_call(settings.disk_mb)
    else:
        os.chdir(folder)
        if IS_LINUX:
            drop_capabilities()
    if IS_LINUX:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise ProcessLookupError("the server has ended")
    _limit(settings)
    if settings.wall == "landlock":
        landlock.restrict(".", readable, namespaces.DEVICES, hidden)
    if system_calls is not None:
        install_filter(system_calls)


def _limit(settings: Settings) -> None:
    limits = {
        "AS": settings.memory_mb * 2**20,
        "CPU": settings.cpu_s,
        "FSIZE": settings.disk_mb * 2**20,
        "NOFILE": settings.max_open_files,
        "CORE": 0,
        # Without a user namespace it counts every process of the user: then none is the only number that means
        # something.
        "NPROC": settings.max_processes if settings.wall == "namespaces" else 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "SIGPENDING": _MAX_SIGNALS,
    }
    for name, value in limits.items():
        limit = vars(resource).get(f"RLIMIT_{name}")
        if limit is None:
            continue
        present = resource.getrlimit(limit)[1]
        value = value if present == resource.RLIM_INFINITY else min(value, present)
        resource.setrlimit(limit, (value, value))

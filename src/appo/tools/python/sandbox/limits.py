"""What the process of a call may use."""

from __future__ import annotations

import os
import resource
import signal

from . import namespaces
from .linux import IS_LINUX, PR_SET_PDEATHSIG, prctl
from .seccomp import install_filter
from .settings import Settings


def confine(settings: Settings, system_calls: bytes | None) -> None:
    """Gives the process its working folder and takes what it may not have."""
    os.setpgid(0, 0)
    if settings.namespaces:
        namespaces.enter_call(settings.disk_mb)
    else:
        os.mkdir(str(os.getpid()), 0o700)
        os.chdir(str(os.getpid()))
    if IS_LINUX:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _limit(settings)
    if system_calls is not None:
        install_filter(system_calls)


def _limit(settings: Settings) -> None:
    limits = {
        resource.RLIMIT_AS: settings.memory_mb * 2**20,
        resource.RLIMIT_CPU: settings.cpu_s,
        resource.RLIMIT_FSIZE: settings.disk_mb * 2**20,
        resource.RLIMIT_NOFILE: settings.max_open_files,
        resource.RLIMIT_CORE: 0,
        # Without a user namespace it counts every process of the user: then none is the only number that means
        # something.
        resource.RLIMIT_NPROC: settings.max_processes if settings.namespaces else 0,
    }
    for limit, value in limits.items():
        present = resource.getrlimit(limit)[1]
        value = value if present == resource.RLIM_INFINITY else min(value, present)
        resource.setrlimit(limit, (value, value))

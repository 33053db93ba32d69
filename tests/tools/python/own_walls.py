"""Walls that a test takes away, and system calls that it makes past the C library."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Collection

import pytest

from appo.tools.python.client import Interpreter, NoWallError
from appo.tools.python.sandbox.seccomp import install_filter
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

REFUSED = {
    "x86_64": {
        **{"socket": 41, "bind": 49, "connect": 42, "listen": 50, "accept": 43, "accept4": 288, "setsockopt": 54},
        **{"sendmsg": 46, "recvmsg": 47, "sendmmsg": 307, "recvmmsg": 299, "shmget": 29, "semget": 64, "msgget": 68},
        **{"mq_open": 240, "memfd_create": 319, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311},
        **{"kcmp": 312, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308},
        **{"add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323},
        **{"open_by_handle_at": 304, "name_to_handle_at": 303, "inotify_init": 253, "inotify_init1": 294},
        **{"fanotify_init": 300, "io_setup": 206, "eventfd2": 290, "timerfd_create": 283, "timer_create": 222},
        **{"signalfd4": 289, "flock": 73, "setpriority": 141, "sched_setscheduler": 144, "sched_setparam": 142},
        **{"sched_setattr": 314, "sched_setaffinity": 203, "ioprio_set": 251, "syslog": 103, "modify_ldt": 154},
        **{"personality": 135, "seccomp": 317, "execveat": 322, "vmsplice": 278, "splice": 275, "tee": 276},
        **{"sync": 162, "setxattr": 188, "chown": 92, "mlock": 149, "mincore": 27, "rt_sigqueueinfo": 129},
        **{"capset": 126, "setuid": 105, "quotactl": 179, "init_module": 175, "reboot": 169, "kexec_load": 246},
    },
    "aarch64": {
        **{"socket": 198, "bind": 200, "connect": 203, "listen": 201, "accept": 202, "accept4": 242, "setsockopt": 208},
        **{"sendmsg": 211, "recvmsg": 212, "sendmmsg": 269, "recvmmsg": 243, "shmget": 194, "semget": 190},
        **{"msgget": 186, "mq_open": 180, "memfd_create": 279, "ptrace": 117, "process_vm_readv": 270},
        **{"process_vm_writev": 271, "kcmp": 272, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51},
        **{"unshare": 97, "setns": 268, "add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280},
        **{"perf_event_open": 241, "userfaultfd": 282, "open_by_handle_at": 265, "name_to_handle_at": 264},
        **{"inotify_init1": 26, "fanotify_init": 262, "io_setup": 0, "eventfd2": 19, "timerfd_create": 85},
        **{"timer_create": 107, "signalfd4": 74, "flock": 32, "setpriority": 140, "sched_setscheduler": 119},
        **{"sched_setparam": 118, "sched_setattr": 274, "sched_setaffinity": 122, "ioprio_set": 30, "syslog": 116},
        **{"personality": 92, "seccomp": 277, "execveat": 281, "vmsplice": 75, "splice": 76, "tee": 77, "sync": 81},
        **{"setxattr": 5, "mlock": 228, "mincore": 232, "rt_sigqueueinfo": 138, "capset": 91, "setuid": 146},
        **{"quotactl": 60, "init_module": 105, "reboot": 142, "kexec_load": 104},
    },
}
"""Calls that no code may make: some of those that reach other processes, the network, the kernel's rarely used parts,
or what is counted for the user or the machine."""
REFUSED_EVERYWHERE = {
    **{"pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430},
    **{"fspick": 433, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442},
    **{"landlock_create_ruleset": 444, "memfd_secret": 447, "futex_waitv": 449, "cachestat": 451, "statmount": 457},
    **{"listmount": 458},
}


def refused_calls() -> dict[str, int]:
    """Names and numbers of what is refused on this machine; none where calls are not filtered."""
    of_machine = REFUSED.get(os.uname().machine)
    return {} if of_machine is None else of_machine | REFUSED_EVERYWHERE


def number_of(name: str) -> int:
    """Number of a refused call on this machine; skips the test where there is none."""
    if name not in (numbers := refused_calls()):
        pytest.skip(f"system calls are not filtered on {os.uname().machine}")
    return numbers[name]


def system_call(number: int, *arguments: int) -> str:
    """Code that makes a system call and tells its result and error number."""
    passed = [*arguments, *[0] * (6 - len(arguments))]
    return (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"libc.syscall({number}, *map(ctypes.c_long, {passed})), ctypes.get_errno()"
    )


def forbid(walls: Collection[Wall]) -> None:
    """Refuses to this process, and to all that come from it, what builds some walls."""
    numbers = refused_calls()
    refused = {"namespaces": numbers["unshare"], "landlock": numbers["landlock_create_ruleset"]}
    program = [(0x20, 0, 0, 0)]
    for wall in walls:
        program += [(0x15, 0, 1, refused[wall]), (0x06, 0, 0, 0x5_0000 | errno.EPERM)]
    program.append((0x06, 0, 0, 0x7FFF_0000))
    install_filter(b"".join(struct.pack("HBBI", *instruction) for instruction in program))


def gives(settings: Settings) -> bool:
    """Whether this machine gives the wall that the settings ask for."""
    try:
        Interpreter(settings).stop()
    except NoWallError:
        return False
    return True

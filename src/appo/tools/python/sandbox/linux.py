"""System calls of Linux that Python 3.11 has no function for."""

from __future__ import annotations

import ctypes
import os
import sys

IS_LINUX = sys.platform == "linux"

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_SYS_MOUNT_SETATTR = 442
"""The same on every architecture, as with all calls that are younger than their common table."""
_CAPABILITY_VERSION = 0x2008_0522

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_uint32]) -> int:
    """Calls a function of the C library that answers -1 when it fails.

    Returns:
        Its answer.

    Raises:
        OSError: with the function's name, if it failed.
    """
    # As long integers: a variadic function such as prctl reads whole registers.
    answer: int = getattr(_LIBC, name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if answer == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return answer


def prctl(option: int, value: int, argument: ctypes.Structure | None = None) -> None:
    """Sets a property of the process; `argument` goes by reference."""
    call("prctl", option, value, 0 if argument is None else ctypes.addressof(argument), 0, 0)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mounts a file system, or binds a path to another."""
    call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def make_read_only(target: str) -> None:
    """Makes a mount and all mounts below it read-only, and deaf to set-user-ID bits."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID, 0, 0, 0)
    reference, size = ctypes.addressof(attributes), ctypes.sizeof(attributes)
    call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, reference, size)


def drop_capabilities() -> None:
    """Gives up every privilege over the user namespace of the process."""
    call("capset", (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())

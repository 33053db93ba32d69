"""A filter that refuses system calls: sockets, and ways to reach other processes or the kernel's rarely used parts."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from .linux import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl

_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
"""What the kernel calls the architectures that the tables below know."""
_X32_BIT = 0x4000_0000
"""Marks the second table of calls that x86-64 has; no number of aarch64 reaches it."""

REFUSED = {
    "x86_64": {
        **{"socket": 41, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319},
        **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
        **{"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308},
        **{"add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323},
        **{"open_by_handle_at": 304, "name_to_handle_at": 303},
    },
    "aarch64": {
        **{"socket": 198, "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279},
        **{"ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272},
        **{"mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268},
        **{"add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282},
        **{"open_by_handle_at": 265, "name_to_handle_at": 264},
    },
}
REFUSED_EVERYWHERE = {
    **{"io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fspick": 433, "pidfd_getfd": 438},
    **{"mount_setattr": 442, "memfd_secret": 447},
}
_SIGNALS = {
    "x86_64": {"kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297},
    "aarch64": {"kill": 129, "tkill": 130, "tgkill": 131, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240},
}
_PIDFD_SEND_SIGNAL = 424
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_CLONE_NAMESPACES = 0x7E02_0000
"""The flags of clone that make namespaces."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Where the kernel shows them to a filter; the argument's lower half, on machines that put that first."""
_ALLOW, _ERROR = 0x7FFF_0000, 0x0005_0000
_MODE_FILTER = 2


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def make_filter(may_signal: bool) -> bytes | None:
    """Writes the filter for this machine.

    Args:
        may_signal: whether signals may be sent; False where they would reach processes outside.

    Returns:
        Instructions for `install_filter`, or None for an architecture that has no table here.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return None
    refused = {*REFUSED[machine].values(), *REFUSED_EVERYWHERE.values()}
    if not may_signal:
        refused |= {*_SIGNALS[machine].values(), _PIDFD_SEND_SIGNAL}
    refuse = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), refuse]
    program += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32_BIT), refuse]
    for number in sorted(refused):
        program += [(_EQUAL, 0, 1, number), refuse]
    # Its flags lie in memory, out of a filter's sight; told that it does not exist, the C library takes clone instead.
    program += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    program += [(_EQUAL, 0, 3, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT), (_ANY_BIT, 0, 1, _CLONE_NAMESPACES)]
    program += [refuse, (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def install_filter(instructions: bytes) -> None:
    """Puts the process, and all that come from it, under a filter for good."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, _MODE_FILTER, _Program(len(instructions) // 8, instructions))

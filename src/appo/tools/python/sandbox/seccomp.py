"""A filter that lets system calls through by name and refuses the rest, those of kernels to come included."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .linux import PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, prctl
from .syscalls import ALLOWED, CHECKED, CLONE, CLONE3, FORKS, LAST_KNOWN, OWN_WORLD

_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
"""What the kernel calls the architectures that the tables know."""
_X32_BIT = 0x4000_0000
"""Marks the second table of calls that x86-64 has; no number of aarch64 reaches it."""

_LOAD, _MASK, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Where the kernel shows them to a filter; of an argument its lower half, on machines that put that first."""
_ALLOW, _ERROR = 0x7FFF_0000, 0x0005_0000
_MODE_FILTER = 2

Instruction = tuple[int, int, int, int]
"""Operation, jumps if true and if false, operand."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


@dataclass(frozen=True)
class Rule:
    """What an argument must be: its bits within a mask must make one of some values. Arguments here have 32 bits."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF


def _no_bits(argument: int, bits: int) -> Rule:
    return Rule(argument, (0,), bits)


_UNIX, _STREAM, _SOCKET_FLAGS = 1, 1, 0x8_0800
_FIFO, _KIND_OF_FILE = 0x1000, 0xF000
_MAP_LOCKED, _MAP_HUGE = 0x2000, 0x4_0000
_THREAD_OR_FORK = 0x017D_4FFF
"""Flags of clone with which threads are started and processes forked: none makes namespaces, siblings or tracees."""

RULES = {
    # Descriptors are duplicated and their flags set; locks, leases, owners, notices and the size of pipes are not:
    # others see them, or pay for them.
    "fcntl": [Rule(1, (0, 1, 2, 3, 4, 1030))],
    # Whether it is a terminal and how wide, how much can be read, whether it blocks, whether it outlives `execve`.
    "ioctl": [Rule(1, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))],
    "mmap": [_no_bits(3, _MAP_LOCKED | _MAP_HUGE)],
    # What allocators and numerical libraries advise; not that pages like another's be merged with them.
    "madvise": [Rule(2, (0, 1, 2, 3, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19))],
    # Waiting and waking; nothing with priorities.
    "futex": [Rule(1, (0, 1, 3, 4, 5, 9, 10), 0x7F)],
    "prctl": [Rule(0, (15, 16))],
    # The pointer to a thread's own memory, and which registers may be used.
    "arch_prctl": [Rule(0, (0x1002, 0x1003, 0x1021, 0x1022, 0x1023))],
    "prlimit64": [Rule(0, (0,))],
    "getpriority": [Rule(0, (0,)), Rule(1, (0,))],
    "socketpair": [Rule(0, (_UNIX,)), Rule(1, (_STREAM,), 0xFFFF_FFFF & ~_SOCKET_FLAGS), Rule(2, (0, _UNIX))],
    "mknod": [Rule(1, (_FIFO,), _KIND_OF_FILE)],
    "mknodat": [Rule(2, (_FIFO,), _KIND_OF_FILE)],
}
"""Of the arguments of the calls that are allowed with some alone."""

_REFUSE: Instruction = (_RETURN, 0, 0, _ERROR | errno.EPERM)
_PERMIT: Instruction = (_RETURN, 0, 0, _ALLOW)
_UNKNOWN: Instruction = (_RETURN, 0, 0, _ERROR | errno.ENOSYS)
_NO_ROOM: Instruction = (_RETURN, 0, 0, _ERROR | errno.EAGAIN)


def make_filter(own_world: bool) -> bytes | None:
    """Writes the filter for this machine.

    Args:
        own_world: whether the process has namespaces of its own; elsewhere it may neither fork, nor send signals, nor
            change what is known of a file.

    Returns:
        Instructions for `install_filter`, or None for an architecture that has no table here.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return None
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), _REFUSE]
    program += [(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32_BIT), _REFUSE]
    # Its flags lie in memory, out of a filter's sight; told that it does not exist, the C library takes clone instead.
    program += [(_EQUAL, 0, 1, CLONE3), _UNKNOWN, (_AT_LEAST, 0, 1, LAST_KNOWN + 1), _UNKNOWN]
    allowed = {*ALLOWED[machine].values()}
    if own_world:
        allowed |= {*OWN_WORLD[machine].values(), *FORKS[machine]}
        program += _checked(CLONE[machine], [_no_bits(0, 0xFFFF_FFFF & ~_THREAD_OR_FORK)])
    else:
        for number in (CLONE[machine], *FORKS[machine]):
            program += [(_EQUAL, 0, 1, number), _NO_ROOM]
    for name, number in CHECKED[machine].items():
        program += _checked(number, RULES[name])
    for first, last in _ranges(allowed):
        program += [(_AT_LEAST, 0, 2, first), (_AT_LEAST, 1, 0, last + 1), _PERMIT]
    program.append(_REFUSE)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def install_filter(instructions: bytes) -> None:
    """Puts the process, and all that come from it, under a filter for good."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, _MODE_FILTER, _Program(len(instructions) // 8, instructions))


def _checked(number: int, rules: Sequence[Rule]) -> list[Instruction]:
    """Lets a call through if all rules hold, and refuses it else; other calls pass on with their number loaded."""
    checks: list[Instruction] = []
    for rule in rules:
        checks += [(_LOAD, 0, 0, _ARGUMENTS + 8 * rule.argument), (_MASK, 0, 0, rule.mask)]
        for index, value in enumerate(rule.values):
            checks.append((_EQUAL, len(rule.values) - index, 0, value))
        checks.append(_REFUSE)
    checks.append(_PERMIT)
    return [(_EQUAL, 0, len(checks), number), *checks]


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The first and last of each run of numbers without a gap, in order."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges

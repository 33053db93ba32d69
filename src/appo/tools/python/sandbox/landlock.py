"""Landlock: a wall around files and processes that any program may build around itself, where there are no namespaces.

See https://docs.kernel.org/userspace-api/landlock.html. It guards what files hold, and the memory of processes outside;
what is only known of a file (that it exists, its size, its times) can be seen, and changing that is left to the filter.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence

from .linux import PR_SET_NO_NEW_PRIVS, call, prctl

MIN_VERSION = 3
"""The first version (Linux 6.2) that keeps files from being cut."""

_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
"""The same on every architecture."""
_TELL_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER, _TRUNCATE, _DEVICE_CONTROL = (1 << bit for bit in (0, 1, 2, 3, 14, 15))
_MAKE_CHARACTER_DEVICE, _MAKE_SOCKET, _MAKE_BLOCK_DEVICE = 1 << 6, 1 << 9, 1 << 11
_UP_TO_TRUNCATE = 2 * _TRUNCATE - 1
_TCP, _SCOPES, _NO_LOG = 0b11, 0b11, 0b1
_SINCE_DEVICE_CONTROL, _SINCE_TCP, _SINCE_SCOPES, _SINCE_LOG = 5, 4, 6, 7
_OWN = _UP_TO_TRUNCATE & ~(_MAKE_CHARACTER_DEVICE | _MAKE_SOCKET | _MAKE_BLOCK_DEVICE)
_SEEN = _EXECUTE | _READ_FILE | _READ_FOLDER
_OF_FILES = _EXECUTE | _READ_FILE | _WRITE_FILE


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """Version of Landlock that the kernel has.

    Raises:
        OSError: if it has none.
    """
    return call("syscall", _SYS_CREATE_RULESET, 0, 0, _TELL_VERSION)


def restrict(own: str, readable: Sequence[str], devices: Sequence[str], hidden: Sequence[str]) -> None:
    """Takes from the process, and from all that come from it, every file but some.

    Args:
        own: folder in which anything may be done with files.
        readable: files and folders that can be read, listed and executed.
        devices: files that can be read and written besides.
        hidden: folders within readable ones of which no file can be read.
    """
    has = version()
    ruleset = _Ruleset(
        _UP_TO_TRUNCATE | (_DEVICE_CONTROL if has >= _SINCE_DEVICE_CONTROL else 0),
        _TCP if has >= _SINCE_TCP else 0,
        _SCOPES if has >= _SINCE_SCOPES else 0,
    )
    rules = call("syscall", _SYS_CREATE_RULESET, ctypes.addressof(ruleset), ctypes.sizeof(ruleset), 0)
    for path in readable:
        _add(rules, path, _READ_FOLDER)
        for part in _around(path, hidden):
            _add(rules, part, _SEEN)
    for path in devices:
        _add(rules, path, _READ_FILE | _WRITE_FILE)
    _add(rules, own, _OWN)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    # What code tries in vain is nothing for the machine's log.
    call("syscall", _SYS_RESTRICT_SELF, rules, _NO_LOG if has >= _SINCE_LOG else 0)
    os.close(rules)


def _around(path: str, hidden: Sequence[str]) -> Iterable[str]:
    """The path, or what lies in it besides `hidden`: a rule takes nothing from what another has given."""
    if any(f"{path}/".startswith(f"{folder}/") for folder in hidden):
        return
    if not any(folder.startswith(path.rstrip("/") + "/") for folder in hidden):
        yield path
        return
    for name in os.listdir(path):
        yield from _around(os.path.join(path, name), hidden)


def _add(rules: int, path: str, access: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # A machine has some of these files; what is out of the user's own reach needs no wall.
        return
    try:
        rule = _Beneath(access if os.path.isdir(path) else access & _OF_FILES, parent)
        if rule.access:
            call("syscall", _SYS_ADD_RULE, rules, _PATH_BENEATH, ctypes.addressof(rule), 0)
    finally:
        os.close(parent)

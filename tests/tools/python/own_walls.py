"""Walls that a test takes away."""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection

from appo.tools.python.attacks.system_calls import refused_calls
from appo.tools.python.client import Interpreter, NoWallError
from appo.tools.python.sandbox.seccomp import install_filter
from appo.tools.python.sandbox.settings import Settings, Wall


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

"""What both sides of the control socket must agree on."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass

CODE_LENGTH = struct.Struct(">Q")
"""Precedes the code of a call: its bytes."""
ANSWER = struct.Struct(">?i")
"""Ends a call: whether its process lives on, and the exit code, or minus the number of the signal that ended it."""
NO_PROCESS = ANSWER.pack(False, -(2**31))
"""Answers a call for which no process could be made."""


@dataclass(frozen=True)
class Settings:
    """What a call may use.

    Attributes:
        memory_mb: address space of each of its processes, MiB.
        cpu_s: processor time of each of its processes, whole seconds.
        disk_mb: files of its working folder together, and each file, MiB.
        max_processes: processes and threads at once.
        max_open_files: descriptors of each process.
        packages: whether installed packages can be imported.
        preload: modules that are imported before the first call.
        keep_variables: whether the process of a call stays and takes more code.
        namespaces: whether calls run in namespaces of their own, or under limits alone.
    """

    memory_mb: int
    cpu_s: int
    disk_mb: int
    max_processes: int
    max_open_files: int
    packages: bool
    preload: tuple[str, ...]
    keep_variables: bool
    namespaces: bool

    def dump(self) -> str:
        """One line of JSON, for `load`."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, line: str) -> Settings:
        """The settings that `dump` wrote."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Report:
    """What the interpreter says once, when it takes calls or cannot.

    Attributes:
        user_id: whose rights calls have.
        has_filter: whether system calls are filtered.
        no_namespaces: why the machine gives none; None if it does, or none were wanted.
        no_module: why a module could not be loaded; None if all were.
    """

    user_id: int = -1
    has_filter: bool = False
    no_namespaces: str | None = None
    no_module: str | None = None

    def dump(self) -> bytes:
        """One line of JSON, for `load`."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def load(cls, line: bytes) -> Report:
        """The report that `dump` wrote."""
        return cls(**json.loads(line))

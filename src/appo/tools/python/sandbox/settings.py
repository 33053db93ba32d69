"""What both sides of the control socket must agree on."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import Literal

CODE_LENGTH = struct.Struct(">Q")
"""Precedes the code of a call: its bytes."""
CELL_END = struct.Struct(">B")
"""What a process that keeps its variables says when a cell has ended: the exit code."""
ANSWER = struct.Struct(">?i")
"""Ends a call: whether its process lives on, and the exit code, or minus the number of the signal that ended it."""
NO_PROCESS = ANSWER.pack(False, -(2**31))
"""Answers a call for which no process could be made."""
NEW_CALL, SIGN_OF_LIFE = b"c", b"s"
"""What a caller asks for: a process for two descriptors, or that one descriptor be closed, which says that the server
serves."""

Wall = Literal["namespaces", "landlock", "limits"]
"""What keeps a call from the machine, strongest first."""


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
        wall: what calls run behind.
    """

    memory_mb: int
    cpu_s: int
    disk_mb: int
    max_processes: int
    max_open_files: int
    packages: bool
    preload: tuple[str, ...]
    keep_variables: bool
    wall: Wall

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
        no_wall: why the machine does not give the wall that was asked for; None if it does.
        no_module: why a module could not be loaded; None if all were.
    """

    user_id: int = -1
    has_filter: bool = False
    no_wall: str | None = None
    no_module: str | None = None

    def dump(self) -> bytes:
        """One line of JSON, for `load`."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def load(cls, line: bytes) -> Report:
        """The report that `dump` wrote."""
        return cls(**json.loads(line))

"""What a process holds, and what it could leave behind."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def children(of: int | None = None) -> set[int]:
    """The processes that a process has started, and those that they have started, which have not ended yet.

    Args:
        of: a process; this one by default.
    """
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended meanwhile
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found, new = set(), {of or os.getpid()}
    while new := {pid for pid, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def shared_memory() -> set[str]:
    """Names of what is in the machine's shared memory and no process holds: it was left behind."""
    found = {path.name for path in Path("/dev/shm").iterdir() if not path.is_dir()}
    held = ""
    for process in Path("/proc").glob("[0-9]*") if found else ():
        with suppress(OSError):  # it has ended meanwhile
            held += (process / "maps").read_text()
            held += "\n".join(os.readlink(link) for link in (process / "fd").iterdir())
    return {name for name in found if f"/dev/shm/{name}" not in held}

"""What a test can see of processes from outside."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """Processes that a process has forked and not yet waited for."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on; parents before children."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def interpreters() -> list[int]:
    """Processes of the fork servers that this process has started; the last one is that which forks."""
    return [
        pid
        for child in children(os.getpid())
        if b"sandbox.start" in command(child)
        for pid in (child, *descendants(child))
    ]


def command(pid: int) -> bytes:
    """Command line of a process, empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def parent(pid: int) -> int:
    """The process that a process is a child of."""
    return int(_stat(pid)[1])


def wait_until_busy(pid: int) -> None:
    """Returns when a process has computed for a while, longer than it takes to start."""
    while sum(map(int, _stat(pid)[11:13])) < 0.2 * os.sysconf("SC_CLK_TCK"):
        os.sched_yield()


def wait_for_child(before: list[int]) -> int:
    """Returns the first process of a fork server that was not there before."""
    while not (new := [pid for pid in interpreters() if pid not in before]):
        os.sched_yield()
    return new[0]


def _stat(pid: int) -> list[str]:
    # The name stands in parentheses and may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

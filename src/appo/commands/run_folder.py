"""The folder of a run, which one run at a time may write."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def reserved(folder: Path, is_first: bool = True) -> Iterator[None]:
    """Keeps other runs of this machine out of a folder; the kernel lets them in when the process ends, however it does.

    Args:
        folder: of the run; it is made if it is not there.
        is_first: of the processes of the run; it holds the folder for all of them.

    Raises:
        ValueError: if another run has it, or it cannot be written to.
    """
    if not is_first:
        yield
        return
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ValueError(
            f"trainer.default_root_dir must be a folder that can be written to, got {folder}: {error}"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(descriptor, 20).decode(errors="replace").strip()
            raise ValueError(
                f"trainer.default_root_dir must be a folder that no other run is writing, got {folder}: "
                f"process {other} is"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)

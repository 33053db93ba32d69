"""Removes folders that mean harm."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_tree(path: str) -> None:
    """Removes a folder with all that lies in it, however deep, and whatever its folders allow.

    Takes two descriptors and no recursion: folders within folders are moved up before they are emptied. Follows no
    symbolic link. What cannot be removed stays, and raises nothing.
    """
    # No name that stands there can be guessed to be taken.
    token, numbers = os.urandom(8).hex(), itertools.count()
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
    with contextlib.suppress(OSError), _opened(path) as top:
        folders = _remove_files(top)
        while folders:
            name = folders.pop()
            with contextlib.suppress(OSError):
                with _opened(name, top) as folder:
                    for inner in _remove_files(folder):
                        moved = f"{token}-{next(numbers)}"
                        os.rename(inner, moved, src_dir_fd=folder, dst_dir_fd=top)
                        folders.append(moved)
                os.rmdir(name, dir_fd=top)
    with contextlib.suppress(OSError):
        os.rmdir(path)


@contextlib.contextmanager
def _opened(path: str, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_files(folder: int) -> list[str]:
    """Removes what is no folder; returns the names of those that are, made accessible."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                    os.chmod(entry.name, 0o700, dir_fd=folder)
                else:
                    os.unlink(entry.name, dir_fd=folder)
    return folders

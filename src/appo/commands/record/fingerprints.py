"""Tells whether files are the same, without reading terabytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

_WHOLE = 64 * 2**20
"""Bytes up to which a file is read as a whole."""

_MOST = 10_000
"""Files of a folder that are looked at."""

_SAMPLES, _SAMPLE = 64, 2**20
"""Number and bytes of the parts that are read of a larger one, its two ends among them."""


def fingerprint(path: Path) -> str:
    """Of a file or of a folder with all that it holds: the SHA-256 of names, sizes and contents.

    Of a file above 64 MiB, such as the weights of a policy, 64 parts of 1 MiB are read; of a folder, 10,000 files.

    Raises:
        OSError: if something cannot be read.
    """
    digest = sha256()
    files = islice((file for file in path.rglob("*") if file.is_file()), _MOST) if path.is_dir() else [path]
    for file in sorted(files):
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        for part in _parts(file):
            digest.update(part)
    return digest.hexdigest()


def _parts(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            yield file.read()
            return
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
            yield file.read(_SAMPLE)


def files_in(config: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    """The files and folders that exist and that values of a config name, by dotted key.

    A word that could be a name of anything, without a slash or a suffix, names none.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from files_in(value, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            yield from files_in(value, f"{key}[{number}]")
    elif isinstance(config, str) and ("/" in config or Path(config).suffix):
        try:
            if Path(config).exists():
                yield key, Path(config)
        except (OSError, ValueError):
            return  # too long a text for a name, or one with a null character

"""Parquet files that others wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appo.core.extras import import_extra


def parquet_rows(path: Path, rule: str, user: str, extra: str, rows_at_once: int = 1024) -> Iterator[dict[str, Any]]:
    """The rows of a file in its order, as they are decoded.

    Args:
        path: of the file.
        rule: what the error begins with.
        user: what needs pyarrow, in the user's words.
        extra: that installs it.
        rows_at_once: that are decoded together.

    Raises:
        ValueError: if it is no Parquet file, or a damaged one.
        MissingPackageError: if pyarrow is not installed.
    """
    pyarrow, parquet = (import_extra(module, user, extra) for module in ("pyarrow", "pyarrow.parquet"))
    # Dates and texts that are none show themselves only when they are made Python's.
    refusals = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows_at_once):
                yield from batch.to_pylist()
    except refusals as error:
        raise ValueError(f"{rule} must be a Parquet file, got {path}: {' '.join(str(error).split())}") from error

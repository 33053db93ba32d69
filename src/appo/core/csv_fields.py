"""CSV files whose fields are as long as they are."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def long_fields() -> Iterator[None]:
    """Lifts the limit of 128 KiB a field, which is the whole process's."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)

"""JSON that others wrote, which may be made to break its reader."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: if it is no JSON, or nested deeper than a reader can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_encodable(text: str) -> bool:
    r"""Whether a text can be encoded: JSON may hold one half of a surrogate pair, as in ``"\udfff"``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def beginning(value: Any) -> str:
    """The first characters of a value as JSON; its kind, where it is nested about as deep as can be read."""
    try:
        return json.dumps(value, default=str)[:80]
    except RecursionError:
        return f"a {type(value).__name__}"


def listed(names: Iterable[object]) -> str:
    """Names that a stranger chose, in a few words: the first ones, and the beginning of each."""
    first = [str(name)[:40] for name in islice(names, 11)]
    return ", ".join(first[:10]) + (", ..." if len(first) > 10 else "")

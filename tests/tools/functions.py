"""Functions that tests name by import path, or pass as they are."""

from __future__ import annotations

from typing import Literal


def convert(value: float, unit: Literal["km", "mile"], places: int = 2) -> str:
    """Converts a length to meters.

    It is exact.

    Args:
        value: how long it is.
        unit: what it is measured in.
        places: digits behind the point.

    Returns:
        The length.
    """
    return f"{value * {'km': 1000.0, 'mile': 1609.344}[unit]:.{places}f} m"


def shout(text: str) -> str:
    """Says it louder.

    Args:
        text: what to say.
    """
    return text.upper() + "!"


def count(texts: list[str]) -> dict[str, int]:
    """Counts words.

    Args:
        texts: where they stand.
    """
    words = " ".join(texts).split()
    return {word: words.count(word) for word in words}


def without_docstring(text: str) -> str:
    return text


def without_hint(text):
    """Says it.

    Args:
        text: what to say.
    """
    return str(text)


def without_argument(text: str, times: int) -> str:
    """Says it.

    Args:
        text: what to say.
    """
    return text * times


def any_number(*texts: str) -> str:
    """Says it all.

    Args:
        texts: what to say.
    """
    return " ".join(texts)


async def later(text: str) -> str:
    """Says it later.

    Args:
        text: what to say.
    """
    return text

"""Text of strangers for people's eyes: what a terminal would obey, or a reader would not see, becomes a symbol."""

from __future__ import annotations

import unicodedata


def inert(text: str, keep: str = "") -> str:
    """A text without what a terminal would obey, or what would turn its order around.

    Args:
        text: of a model, a tool or a file.
        keep: characters that stay.
    """
    return "".join(_shown(character) if character not in keep else character for character in text)


def _shown(character: str) -> str:
    if character < " ":
        return chr(0x2400 + ord(character))
    return f"\\u{ord(character):04x}" if unicodedata.category(character) in ("Cc", "Cf") else character

"""Text of strangers, in which nothing is more than text: no control token, no tag of a call, a result or a thought."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from appo.policy.text import encode

_TAG = re.compile(r"</?[A-Za-z_|][^<>\s]{0,63}>")
_LIKE_TAG = re.compile(r"\s*[<\[\uff1c].+[>\]\uff1e]\s*")
"""Of added tokens, those that a chat template may be made of, whatever the marks of their family are."""

_REFUSED = "Error: the result holds control tokens."


class InertText:
    """Spells out what would be read as more than text: a result must not end the turn, or open another.

    Args:
        tokenizer: of the policy.
        tags: of the syntax.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tags: Iterable[str]) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        controls = {str(token) for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        # Others may be what a text is made of, as runs of spaces are in some vocabularies.
        like_tags = {text for token in added.values() if _LIKE_TAG.fullmatch(text := str(token))}
        spelled = sorted(filter(str.strip, {*controls, *like_tags, *tags}), key=len, reverse=True)
        self._active = re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
        # These are found in what the tokenizer makes of a text, by writing it in small letters for one.
        self._blurred = re.compile(self._active.pattern, re.IGNORECASE)
        active = controls | like_tags
        self._hidden = frozenset(id_ for id_, token in added.items() if token.normalized and str(token) in active)

    def __call__(self, text: str) -> str:
        """The text with a space in whatever is active, behind its first character."""
        # Half of a surrogate pair is valid JSON, but no text.
        inert = self._active.sub(_part, text.encode(errors="replace").decode())
        if self._is_active(inert):
            inert = self._blurred.sub(_part, unicodedata.normalize("NFKC", inert))
        return _REFUSED if self._is_active(inert) else inert

    def _is_active(self, text: str) -> bool:
        return bool(self._hidden) and not self._hidden.isdisjoint(encode(self._tokenizer, text))


def inert_schemas(tokenizer: PreTrainedTokenizerBase, schemas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Descriptions of tools without control tokens: a server of tools writes its own."""
    inert = InertText(tokenizer, ())

    def spelled(value: Any) -> Any:
        if isinstance(value, str):
            return inert(value)
        if isinstance(value, Mapping):
            return {spelled(key): spelled(item) for key, item in value.items()}
        return [spelled(item) for item in value] if isinstance(value, list | tuple) else value

    return [spelled(schema) for schema in schemas]


def tags_of(text: str) -> list[str]:
    """The tags in a text."""
    return _TAG.findall(text)


def closing(tag: str) -> str:
    """What closes a tag."""
    return tag.replace("<", "</", 1)


def _part(match: re.Match[str]) -> str:
    return f"{match[0][:1]} {match[0][1:]}"

"""The fields of a row, and what is read out of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from appo.core.foreign_json import beginning, listed
from appo.prompts.base import UnusableReason, UnusableRowError

MISSING = object()
"""What a record has under a key that it lacks."""

DAMAGED_COMMANDS = {"\b" + "oxed": r"\boxed", "\f" + "rac": r"\frac"}
"""LaTeX commands whose backslash and first letter were once read as the escape of a control character."""


def lookup(record: Mapping[str, Any], key: str) -> Any:
    """The field under a key, or along a path of keys with dots between them; `MISSING` if there is none."""
    if key in record:
        return record[key]
    found: Any = record
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return MISSING
        found = found[name]
    return found


def to_text(value: object) -> str:
    """The text of a text or a finite number; empty for anything else. A boolean counts as neither."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return ""
    return str(value)


def repair_commands(text: str) -> str:
    r"""Puts ``\boxed`` and ``\frac`` back where a control character stands for their beginning."""
    for damaged, command in DAMAGED_COMMANDS.items():
        text = text.replace(damaged, command)
    return text


def is_balanced(answer: str) -> bool:
    r"""Whether an answer closes every bracket that it opens.

    Braces nest, escaped ones aside. Round and square brackets count as one kind and need not nest: ``(0, 1]`` and
    ``]0, 1[`` are intervals.
    """
    text = re.sub(r"\\[{}\\]", "", answer)
    depth = 0
    for brace in re.findall(r"[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    num_opened, num_closed = (sum(map(text.count, brackets)) for brackets in ("([", ")]"))
    return depth == 0 and num_opened == num_closed


@dataclass(frozen=True)
class Fields:
    """A record whose fields say what is wrong with them.

    Attributes:
        values: the fields by key.
        place: what messages call the record, as in ``line 3 of train.jsonl``.
        quote: whether messages quote values; without, they only say of what kind one is.
    """

    values: Mapping[str, Any]
    place: str
    quote: bool

    def __getitem__(self, key: str) -> Any:
        return lookup(self.values, key)

    def text(self, key: str, reason: UnusableReason) -> str:
        """The text of a field that must be a text or a number.

        Raises:
            UnusableRowError: if it is neither.
        """
        text = to_text(self[key])
        if not text:
            raise self.unusable(reason, key, "be a text or a number")
        return text

    def unusable(self, reason: UnusableReason, key: str, rule: str) -> UnusableRowError:
        """The error of a field that breaks a rule."""
        value = self[key]
        if value is MISSING:
            got = f"none among the keys {listed(self.values)}"
        else:
            got = beginning(value) if self.quote else f"a {type(value).__name__}"
        return UnusableRowError(reason, f"{key} in {self.place} must {rule}, got {got}")

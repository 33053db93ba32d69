"""Numbers as people write them: with units, money and percent, as words, ranges of two, dates and times of day."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from appo.rewards.units import MONTHS, NUMBER_WORDS, PARTS, SCALES, UNITS, Unit

_NO_UNITS = {*PARTS, "less", "minus", "plus", "others"}
_HEAD = re.compile(
    r"([+-]?)\s*(?:(?:US)?([$€£¥₹])\s*)?([+-]?)\s*"
    r"(?:(\d+)?\s*\\[dt]?frac\s*\{?\s*(-?\d+)\s*\}?\s*\{?\s*(\d+)\s*\}?|(\d+)[ -](\d+)/(\d+)|(\d+)/(\d+)"
    r"|(\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d{1,3}))?)"
    r"(?:\s*(?:\\times|\\cdot|[x*\u00d7·])\s*10\s*\^\s*(?:\{\s*)?([+-]?\d{1,3})\s*\}?)?"
)
_POWER = re.compile(r"(?:\^\s*\{?\s*(-?\d)\s*\}?|(\d))$")
_UNIT_BEHIND = re.compile(
    r"(.*\S)\s*\\(?:text|mathrm|mbox|textrm)\s*\{\s*([^{}]+?)\s*\}(\^\s*\{?\d\}?)?"
    r"|(.*[\d)}])\s+([A-Za-z]{2,})(\^\{?\d\}?)?"
)
_SQUARES = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3}
_RANGE = re.compile(r"(?i)(from|between)?\s*(\S.*?)\s*(?:\b(to|until|till|through|and)\b|(-))\s*(?=[\d$€£.+-])(.*)")
_DAYS = re.compile(r"(?i)\b(?:mon|tues|wednes|thurs|fri|satur|sun)day\b,?")
_ISO = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})")
_SLASHED = re.compile(r"(\d{1,2})[/](\d{1,2})[/](\d{4})")
_TIME = re.compile(r"(?i)(\d{1,2})(?::(\d\d))?(?::00)?\s*([ap])\.?\s?m\.?|(\d{1,2}):(\d\d)")


class Quantity(NamedTuple):
    """A number of a unit.

    Attributes:
        number: in units as written.
        unit: factor to the base units, and the powers of these; None if there is no unit.
        is_named: whether the unit cannot be a variable.
    """

    number: Fraction
    unit: Unit | None
    is_named: bool = True


def quantity(text: str) -> Quantity | None:
    """Reads a number with its unit, or a sum such as ``5 ft 10 in``; None if the text is another thing."""
    text = _in_digits(text)
    parts: list[Quantity] = []
    while text and len(parts) < 4:
        head = _HEAD.match(text)
        if head is None:
            return None
        following = re.search(r"(?<=[A-Za-z'\"])(?:,|\s+and)?\s+(?=\d)", text[head.end() :])
        end = head.end() + following.start() if following else len(text)
        part = _single(head, text[head.end() : end].strip())
        if part is None:
            return None
        parts.append(part)
        text = text[head.end() + following.end() :] if following else ""
    if not parts or text:
        return None
    if len(parts) == 1:
        return parts[0]
    units = [part.unit for part in parts]
    first = units[0]
    if (
        first is None
        or any(unit is None or unit[1] != first[1] for unit in units)
        or any(p.number < 0 for p in parts[1:])
    ):
        return None
    sign = -1 if parts[0].number < 0 else 1
    total = sum((abs(part.number) * part.unit[0] for part in parts if part.unit), Fraction(0)) * sign
    return Quantity(total, (Fraction(1), first[1]))


def _single(head: re.Match[str], rest: str) -> Quantity | None:
    if len(head[0]) > 128 or (head[1] and head[3]):
        return None
    whole, top, bottom = head[4] or head[7], head[5] or head[8] or head[10], head[6] or head[9] or head[11]
    if top is not None:
        if not int(bottom) or (whole and not 0 < int(top) < int(bottom)):
            return None
        number = Fraction(int(top), int(bottom)) + int(whole or 0)
    else:
        number = Fraction(head[12]) * Fraction(10) ** int(head[13] or 0)
    number *= Fraction(10) ** int(head[14] or 0)
    if "-" in (head[1], head[3]):
        number = -number
    word, _, after = rest.partition(" ")
    while word.lower() in SCALES:
        number *= SCALES[word.lower()]
        rest = after.strip()
        word, _, after = rest.partition(" ")
    if not rest:
        return Quantity(number, UNITS[head[2]] if head[2] else None)
    if head[2]:
        return Quantity(number, UNITS[head[2]]) if rest in ("USD", "dollars") and head[2] == "$" else None
    unit = _unit(rest)
    if unit is None:
        return None
    glued = head.string[head.end() : head.end() + 1] != " "
    return Quantity(
        number,
        unit,
        (
            len(rest) > 1
            and (
                not glued
                or not (rest.isalpha() and rest.islower() and len(rest) == 2 and rest not in ("km", "cm", "mm", "kg"))
            )
        )
        or rest in "%°$€£¥₹"
        or (not glued and rest in "mgsLWJNVhl"),
    )


def _unit(text: str) -> Unit | None:
    text = re.sub(r"\bper cent\b", "percent", text).strip(" .")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?\s*|\\degree\s*|°\s*", "°", text)
    text = re.sub(r"(?i)degrees? (celsius|fahrenheit)", lambda match: "°" + match[1][0].upper(), text)
    if text in UNITS:
        return UNITS[text]
    factor, powers, sign, wanted = Fraction(1), dict[str, int](), 1, 1
    words = re.sub(r"([/*·])|\bper\b|\\cdot", lambda match: " / " if match[0] in ("per", "/") else " ", text).split()
    if not words or len(words) > 8:
        return None
    for word in words:
        if word == "/":
            sign = -1
            continue
        if word.lower() in _SQUARES:
            wanted = _SQUARES[word.lower()]
            continue
        if word in ("squared", "cubed"):
            return None
        power = _POWER.search(word)
        name = word[: power.start()] if power else word
        found = UNITS.get(name) or UNITS.get(name.lower() if name.isupper() or name.istitle() else name)
        if found is None:
            is_noun = len(words) == 1 and name.isalpha() and name.islower() and len(name) > 3 and name.endswith("s")
            if not is_noun or name in _NO_UNITS:
                return None
            found = Fraction(1), {name.rstrip("s"): 1}
        exponent = sign * wanted * int((power[1] or power[2]) if power else 1)
        factor *= found[0] ** exponent
        for dimension, times in found[1].items():
            powers[dimension] = powers.get(dimension, 0) + times * exponent
        wanted = 1
    return factor, {dimension: power for dimension, power in powers.items() if power}


def split_unit(text: str) -> tuple[str, Unit | None]:
    r"""An expression and the unit behind it, such as ``\\text{ cm}``; the whole text and None if there is none."""
    match = _UNIT_BEHIND.fullmatch(text)
    if match is None:
        return text, None
    unit = _unit((match[2] or match[5]) + (match[3] or match[6] or ""))
    return (text, None) if unit is None else (match[1] or match[4], unit)


def _in_digits(text: str) -> str:
    """Numbers in words as digits, at the beginning: ``three centuries`` is ``3 centuries``."""
    text = re.sub(r"(?i)^(minus|negative)\s+", "-", text)
    sign, text = ("-", text[1:].strip()) if text.startswith("-") else ("", text)
    words = text.split(" ")
    total, count = 0, 0
    for word in words:
        for part in word.lower().split("-"):
            if part not in NUMBER_WORDS:
                break
            total += NUMBER_WORDS[part]
        else:
            count += 1
            continue
        break
    if not count or count > 2:
        return sign + text
    if len(words) == count + 1 and words[count].lower() in PARTS:
        return f"{sign}{total}/{PARTS[words[count].lower()]}"
    return " ".join([f"{sign}{total}", *words[count:]])


def same_quantity(one: Quantity, other: Quantity) -> bool:
    """Whether two quantities are equal; one that lacks a unit is taken to be in that of the other."""
    if one.unit is not None and other.unit is not None:
        if one.unit[1] == other.unit[1]:
            return one.number * one.unit[0] == other.number * other.unit[0]
        return False
    if one.unit is None and other.unit is None:
        return one.number == other.number
    bare, full = (one, other) if one.unit is None else (other, one)
    assert full.unit is not None
    if full.unit[1] == {"percent": 1}:
        return full.number == 100 * bare.number or (full.number == bare.number and abs(bare.number) > 1)
    return full.is_named and bare.number == full.number


def number_range(text: str) -> tuple[Quantity, Quantity] | None:
    """Reads ``10-20``, ``from 10 to 20 km``, ``1989-90``; None if the text is no range."""
    match = _RANGE.fullmatch(text)
    if match is None or ((match[3] or "").lower() == "and" and (match[1] or "").lower() != "between"):
        return None
    low, high = quantity(match[2]), quantity(match[5])
    if low is None or high is None:
        return None
    if match[4] and re.fullmatch(r"\d{4}", match[2]) and re.fullmatch(r"\d\d", match[5]):
        high = Quantity(Fraction(match[2][:2] + match[5]), None)
    if low.unit is None and high.unit is not None:
        low = Quantity(low.number, high.unit)
    return low, high


def date(text: str) -> tuple[int, int, int, str] | None:
    """Year, month, day (0: not named) and era of a date that names a month; None if the text is no date."""
    if match := _ISO.fullmatch(text):
        return int(match[1]), int(match[2]), int(match[3]), "ad"
    if match := _SLASHED.fullmatch(text):
        first, second = int(match[1]), int(match[2])
        month, day = (second, first) if first > 12 else (first, second)
        return int(match[3]), month, day, "ad"
    text = re.sub(r"(?i)\b(?:on|in|of|the)\b", " ", _DAYS.sub(" ", text)).lower()
    year = month = day = 0
    era = "ad"
    for word in re.sub(r"[,.]", " ", text).split():
        if number := re.fullmatch(r"(\d{1,4})(st|nd|rd|th)?", word):
            if len(number[1]) < 3 and not day and 0 < int(number[1]) < 32:
                day = int(number[1])
            elif not year and not number[2]:
                year = int(number[1])
            else:
                return None
        elif word in MONTHS and not month:
            month = MONTHS[word]
        elif word in ("bc", "bce", "ad", "ce"):
            era = "bc" if word[0] == "b" else "ad"
        else:
            return None
    return None if not month or not (year or day) else (year, month, day, era)


def time_of_day(text: str) -> int | None:
    """Minutes since midnight; None if the text is no time of day."""
    if text.lower() in ("noon", "midnight"):
        return 720 if text.lower() == "noon" else 0
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    hours, minutes = int(match[1] or match[4]), int(match[2] or match[5] or 0)
    if minutes > 59 or hours > (12 if match[3] else 23):
        return None
    if match[3]:
        hours = hours % 12 + (12 if match[3].lower() == "p" else 0)
    return 60 * hours + minutes

"""Says whether an answer is an accepted one: mathematics by what it means, numbers by value, text as text.

Every step is linear in the length of the answer, or bounded; an answer beyond `MAX_LENGTH` is right only if it is
spelled like the accepted one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache

from appo.rewards.answer_text import normalize_answer, token_f1
from appo.rewards.expressions import FUNCTIONS
from appo.rewards.notation import clean, mathematical, plain, unwrapped
from appo.rewards.quantities import date, number_range, quantity, same_quantity, split_unit, time_of_day
from appo.rewards.structures import same_mathematics

Decide = Callable[[str, str], bool]

MAX_LENGTH = 1000
"""Longest answer, in characters, that is looked into."""
_COMMAND = re.compile(r"\\(?:begin|end)\{[a-z]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{3,}")
_KNOWN = FUNCTIONS | {"and", "infinity", "inf"}
_CHOICE = re.compile(r"\(?([A-Z])\)?[.:]?")
_CHOSEN = re.compile(r"(?<!\S)\(?([A-Z])\)(?!\S)")
_VERDICT = re.compile(r"(?i)(yes|no|true|false)\b[.!]*(?:\s*[,;:.]\s+(.*))?")
_OPPOSITES = {
    "yes": re.compile(r"(?i)\bno\b|\bnot\b|n't\b|\bfalse\b|\bbut\b"),
    "no": re.compile(r"(?i)\byes\b|\btrue\b|\bbut\b"),
}
_LEAD = re.compile(r"(?i)(?:(?:in|on|at|about|approximately|around|roughly)\s+|[~≈]\s*|\\approx\s*)(?=[\d$])")
_TOKEN = re.compile(
    r"(?<!\w)[+-](?=[^\W\d_])|(?<!\w)[+-]?[$€£¥]?[+-]?(?:\d+(?:\.\d+)?|\.\d+)%?|[^\W\d_][^\W_]*(?:[.'][^\W\d_][^\W_]*)*"
    r"(?:\+\+|#|[+-](?!\w))?|[<>=^*/%$€£¥°+&#]|\d+"
)
_SPELLED = {
    "&": "and",
    "saint": "st",
    "mount": "mt",
    "junior": "jr",
    "senior": "sr",
    "doctor": "dr",
    "%": "percent",
    "bce": "bc",
    "ce": "ad",
}
_LISTED = re.compile(r"(?i)\s*(?:,\s*(?:and|or)\s|,(?!\s*(?:jr|sr|inc|ltd)\b)|;|\s(?:and|or|&)\s)\s*")
_SIGNS = re.compile(r"[-+=^_\\<>|*/!]")
_NAME = re.compile(r"(?:[^\W\d_]|[.& ]|'(?=[^\W\d_]{2}))+")
_ORDINALS_SPELLED = {
    "first": "1st", "second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "sixth": "6th", "seventh": "7th",
    "eighth": "8th", "ninth": "9th", "tenth": "10th",
}  # fmt: skip
_ORDINAL = re.compile(rf"(?i)\b(?:{'|'.join(_ORDINALS_SPELLED)})\b")
_ROMAN = {"II": 2, "III": 3, "IV": 4, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "XI": 11, "XII": 12, "XIII": 13, "XIV": 14}
_ROMAN_NUMBER = re.compile(rf"(?i)(?<=\w )(?:{'|'.join(sorted(_ROMAN, reverse=True))})\b")
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "\N{LATIN SMALL LETTER DOTLESS I}": "i", "ð": "d", "þ": "th"}
)


def is_mathematics(text: str) -> bool:
    """Whether an answer has no word of three letters, names of functions aside: signs, brackets and order count."""
    text = unwrapped(clean(text))
    return not any(word.lower() not in _KNOWN for word in _WORD.findall(_COMMAND.sub(" ", text)))


def verdict(answer: str, accepted: str) -> bool | None:
    """Whether an answer is the accepted one; None for mathematics that is not understood well enough to tell."""
    if max(len(answer), len(accepted)) > MAX_LENGTH:
        return bool(answer) and answer == accepted
    return _verdict(answer, accepted)


@lru_cache(maxsize=2**14)  # of texts of a bounded length alone
def _verdict(answer: str, accepted: str) -> bool | None:
    cleaned = clean(answer), clean(accepted)
    # One character may stand for many: a fraction, a ligature.
    if max(map(len, cleaned)) > MAX_LENGTH:
        return cleaned[0] == cleaned[1]
    given, wanted = (_trimmed(plain(text)) for text in cleaned)
    if not given or not wanted:
        return False
    if given == wanted or cleaned[0].replace(", ", ",") == cleaned[1].replace(", ", ","):
        return True
    for reader in (_same_verdict, _same_choice, _same_numbers):
        if (found := reader(unwrapped(given), unwrapped(wanted))) is not None:
            return found
    if is_mathematics(wanted) and is_mathematics(given):
        (given, unit), (wanted, other) = split_unit(given), split_unit(wanted)
        if None not in (unit, other) and unit != other:
            return False
        found = same_mathematics(mathematical(given), mathematical(wanted))
        if found is None and _compact(given) == _compact(wanted):
            return True
        is_name = found is None and _NAME.fullmatch(given) and _NAME.fullmatch(wanted)
        return True if is_name and _same_text(given, wanted) else found
    if is_mathematics(wanted) and _SIGNS.search(wanted):
        return _compact(given) == _compact(wanted)
    return _same_text(unwrapped(given), unwrapped(wanted))


def agreement(answer: str, accepted: Sequence[str], decide: Decide | None = None) -> tuple[bool, float]:
    """Whether an answer is one of the accepted ones, and how far it shares its words with one.

    Args:
        answer: as the policy wrote it.
        accepted: any of these is right.
        decide: says whether an answer is an accepted one where `verdict` cannot tell; None: it is not.

    Returns:
        Whether it is right, and its largest `token_f1`: 1 if it is right, 0 with an accepted answer in mathematics
        otherwise.
    """
    found = [verdict(answer, other) for other in accepted]
    if any(found) or (decide and any(decide(answer, o) for o, v in zip(accepted, found, strict=True) if v is None)):
        return True, 1.0
    normalized = normalize_answer(answer)
    texts = [normalize_answer(other) for other in accepted if not is_mathematics(other[:MAX_LENGTH])]
    return False, max((token_f1(normalized, other) for other in texts), default=0.0)


def _trimmed(text: str) -> str:
    text = text.strip()
    while len(text) > 1 and text[-1] in ".,;" and text[-2:] not in ("\\,", "\\;"):
        text = text[:-1].rstrip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    return _LEAD.sub("", text, count=1) if _LEAD.match(text) else text


def _compact(text: str) -> str:
    text = unwrapped(text).replace("{", "").replace("}", "").replace(" ", "")
    return text.lower() if re.fullmatch(r"[A-Za-z][+#-]{0,2}", text) else text.replace("_", "")


def _same_verdict(given: str, wanted: str) -> bool | None:
    accepted = _VERDICT.fullmatch(wanted)
    if accepted is None or accepted[2]:
        return None
    answer = _VERDICT.fullmatch(given)
    if answer is None:
        return False
    says, ought = (
        {"true": "yes", "false": "no"}.get(match[1].lower(), match[1].lower()) for match in (answer, accepted)
    )
    return says == ought and not (answer[2] and _OPPOSITES[ought].search(answer[2]))


def _same_choice(given: str, wanted: str) -> bool | None:
    accepted, answer = _CHOICE.fullmatch(wanted), _CHOICE.fullmatch(given.upper() if len(wanted) > 1 else given)
    if accepted is None:
        return None
    if answer is not None:
        return answer[1] == accepted[1]
    # A letter in front of its text; one who names several has chosen none.
    chosen = set(_CHOSEN.findall(given))
    return chosen == {accepted[1]} if _CHOSEN.match(given) else None


def _same_numbers(given: str, wanted: str) -> bool | None:
    """Compares dates, times, ranges and quantities; None unless both are of one of these kinds."""
    for read in (date, time_of_day):
        left, right = read(given), read(wanted)
        if left is not None and right is not None:
            return left == right
        if left is not None or right is not None:
            return False if quantity(given) or quantity(wanted) else None
    low, high = number_range(given), number_range(wanted)
    if low is not None and high is not None:
        return all(same_quantity(one, other) for one, other in zip(low, high, strict=True))
    one, other = quantity(given), quantity(wanted)
    if low is not None or high is not None:
        return False if one is not None or other is not None else None
    if one is None or other is None:
        return None
    return same_quantity(one, other) or (
        None if one.unit and other.unit and not (one.is_named and other.is_named) else False
    )


@lru_cache(maxsize=2**10)  # each may be as large as a text of numbers in words
def _words(text: str, hyphen: str, *, articles: bool = False) -> tuple[str, ...]:
    """Words of a text in one spelling, with the signs that count: letters without accents, no articles."""
    text = _ORDINAL.sub(lambda match: _ORDINALS_SPELLED[match[0].lower()], re.sub(r"(?<=\w)-(?=\w)", hyphen, text))
    text = _ROMAN_NUMBER.sub(lambda match: str(_ROMAN[match[0].upper()]), text)
    text = re.sub(r"(?<![^\W\d_]{2})(?<=[^\W\d_])/(?=[^\W\d_])|(?<=[^\W\d_]{2})\s-\s(?=[^\W\d_]{2})", " ", text)
    found = list(_TOKEN.finditer(text))
    words: list[str] = []
    for number, match in enumerate(found):
        word = match[0]
        is_last = number == len(found) - 1 or text[match.end() : match.end() + 1] == "."
        if (
            not articles
            and not is_last
            and (word.lower() == "the" or word in ("a", "an") or (word in ("A", "An") and number == 0))
        ):
            continue
        word = unicodedata.normalize("NFD", word.casefold())
        word = "".join(c for c in word if not unicodedata.combining(c)).translate(_LETTERS)
        word = word.replace(".", "").replace("'", "") if not any(map(str.isdigit, word)) else word
        value = quantity(word) if word[-1].isdigit() else None
        words.append(f"{value.number}" if value else _SPELLED.get(word, word))
    return tuple(_with_initials(words))


def _with_initials(words: list[str]) -> list[str]:
    """Single letters that follow one another are one word: ``J. K.`` is ``JK``."""
    joined: list[str] = []
    run = False
    for word in words:
        is_initial = len(word) == 1 and word.isalpha()
        if is_initial and run:
            joined[-1] += word
        else:
            joined.append(word)
        run = is_initial
    return joined


def _same_text(given: str, wanted: str, *, in_list: bool = False) -> bool:
    spellings = [
        {_words(text, hyphen, articles=articles) for hyphen in (" ", "") for articles in (False, True)} - {()}
        for text in (given, wanted)
    ]
    if spellings[0] & spellings[1]:
        return True
    if in_list:
        return False
    parts = [[part for part in _LISTED.split(text) if part.strip()] for text in (given, wanted)]
    if 1 < len(parts[0]) == len(parts[1]) <= 32:
        left = list(parts[1])
        for part in parts[0]:
            match = next((other for other in left if _same_text(part, other, in_list=True)), None)
            if match is None:
                return False
            left.remove(match)
        return True
    # Last name first.
    for one, other in ((given, wanted), (wanted, given)):
        last, comma, first = one.partition(", ")
        if comma and "," not in first and "," not in other and " " not in last.strip() and first:
            if _words(f"{first} {last}", " ") == _words(other, " "):
                return True
            particle = re.fullmatch(r"(.*?)\s*\b((?:van|von|de|da|di|del|der|den|la|le|el|al|bin|ibn)(?:\s.*)?)", first)
            if particle and _words(f"{particle[1]} {particle[2]} {last}", " ") == _words(other, " "):
                return True
        if (
            comma
            and "," not in first
            and re.match(r"(?i)(?:van|von|de|da|di|del)\s", last)
            and _words(f"{first} {last}", " ") == _words(other, " ")
        ):
            return True
    return False

"""Answers as text: taking them out of LaTeX, making two spellings of one answer equal, and measuring what two share."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from functools import lru_cache

_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?!\\(?:boxed|fbox)\s*\{).|[{}]", re.DOTALL)
"""The opening of a box, a brace, or an escaped character, which is one like any other."""
_DASHES = re.compile("[\N{MINUS SIGN}\N{EN DASH}\N{EM DASH}]")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname|mbox)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?!,?\d)")
_DROPPED_LATEX = re.compile(r"\\(?:left|right|displaystyle)\b|\^\s*\{?\\circ\}?|\\!|\$")
_LATEX_SPACE = re.compile(r"\\[,;: ]|\\q?quad\b|~")
_SPACED_OPERATOR = re.compile(r"(?<=[\d)}])\s*([-+*/^=<>])\s*(?=[\d({.+-])")
_SPACED_SIGN = re.compile(r"(^|[(=])\s*([-+])\s+(?=\.?\d)")
_POWER = re.compile(r"\^\s*\{(-?\w+)\}")
_NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?")
_RATIONAL = re.compile(r"\(?([+-]?(?:\d+\.?\d*|\.\d+))\)?(?:/\(?([+-]?(?:\d+\.?\d*|\.\d+))\)?)?", re.ASCII)
_MAX_DIGITS = 64
_OUTER = re.compile(r"^[^\w.+-]+|\W+$")
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_ARTICLES = frozenset({"a", "an", "the"})
_VERDICTS = frozenset({"yes", "no", "noanswer"})


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\fbox{...}`` whose braces balance, or None without one."""
    span = last_boxed_span(text)
    return None if span is None else text[slice(*span)].strip()


def last_boxed_span(text: str) -> tuple[int, int] | None:
    """Where the content of `last_boxed` begins and ends."""
    last: tuple[int, int] | None = None
    opened: list[re.Match[str]] = []
    for brace in _BRACE.finditer(text):
        if brace[0].endswith("{") and brace[0] != "\\{":
            opened.append(brace)
        elif brace[0] == "}" and opened:
            opening = opened.pop()
            if opening[0] != "{" and (last is None or opening.end() > last[0]):
                last = opening.end(), brace.start()
    return last


_MAX_LENGTH = 4000
"""Longest text, in characters, whose words are looked into."""


def normalize_answer(text: str) -> str:
    r"""Brings an answer into the form in which equal answers are equal strings.

    Wrappers such as ``\text{}``, case, articles and punctuation go. Numbers keep sign and decimal point, in their
    shortest form: ``1,000.50`` is ``1000.5``. A word that contains a digit keeps the punctuation within: ``1/2``,
    ``x=-3``. A text that consists of nothing but articles or punctuation, such as the choice ``A``, keeps them.
    """
    return _normalized(text[:_MAX_LENGTH])


@lru_cache(maxsize=2**12)  # of cut texts: what an answer takes beyond is not kept
def _normalized(text: str) -> str:
    text = unwrap_latex(_DASHES.sub("-", text)).lower().replace(",", " ")
    text = _SPACED_SIGN.sub(r"\1\2", _SPACED_OPERATOR.sub(r"\1", text))
    words = " ".join(map(_normalize_word, text.split())).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words) or text.strip()


def unwrap_latex(text: str) -> str:
    r"""Takes a text out of LaTeX: ``\text{Paris}`` is ``Paris``, ``\frac{1}{2}`` is ``1/2``, ``1{,}000`` ``1000``."""
    text = _POWER.sub(r"^\1", _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text))
    if "\\" in text or "$" in text or "~" in text:
        text = _LATEX_SPACE.sub(" ", _DROPPED_LATEX.sub("", text))
        unwrapped = _FRACTION.sub(_flatten_fraction, _WRAPPER.sub(r"\1", text))
        # From the inside out: the patterns match what holds no brace.
        while unwrapped != text:
            text, unwrapped = unwrapped, _FRACTION.sub(_flatten_fraction, _WRAPPER.sub(r"\1", unwrapped))
    return text


def _flatten_fraction(match: re.Match[str]) -> str:
    parts = (match[1] or match[2] or "").strip(), (match[3] or match[4] or "").strip()
    return "/".join(part if re.fullmatch(r"[+-]?[\w.]+", part) else f"({part})" for part in parts)


def _normalize_word(word: str) -> str:
    if not any(map(str.isdigit, word)):
        return _PUNCTUATION.sub("", word)
    return shorten_number(word) or shorten_number(_OUTER.sub("", word)) or _OUTER.sub("", word)


def shorten_number(text: str) -> str | None:
    """The shortest decimal spelling of a number, exact at any length; None for what is no number."""
    match = _NUMBER.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return None
    whole, decimals = match[2].lstrip("0") or "0", (match[3] or "").rstrip("0")
    number = f"{whole}.{decimals}" if decimals else whole
    return f"-{number}" if match[1] == "-" and number != "0" else number


def rational(text: str) -> Fraction | None:
    """The exact value of a number or a fraction of two numbers; None for what is neither, or has very many digits."""
    match = _RATIONAL.fullmatch(text) if len(text) <= _MAX_DIGITS else None
    if match is None:
        return None
    if match[2] is None:
        return Fraction(match[1])
    denominator = Fraction(match[2])
    return Fraction(match[1]) / denominator if denominator else None


def agree(prediction: str, answer: str) -> bool:
    """Whether two normalized texts are one answer: equal strings that are not empty, or numbers of equal value."""
    if prediction == answer:
        return bool(prediction)
    value = rational(prediction)
    return value is not None and value == rational(answer)


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words of two normalized texts, each counted as often as it occurs.

    Yes and no agree with themselves alone: a longer text that contains the word shares nothing with it.

    Returns:
        In [0, 1]; 0 if either is empty.
    """
    if prediction != answer and (prediction in _VERDICTS or answer in _VERDICTS):
        return 0.0
    predicted, wanted = prediction.split(), answer.split()
    shared = (Counter(predicted) & Counter(wanted)).total()
    return 2.0 * shared / (len(predicted) + len(wanted)) if shared else 0.0

# ruff: noqa: RUF001
"""Brings the characters and the LaTeX of answers into one notation, in time linear in their length."""

from __future__ import annotations

import re
import unicodedata

_FRACTIONS = {
    character: unicodedata.normalize("NFKC", character).split("\N{FRACTION SLASH}") for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_DROPPED = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad™®"))
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"), "-")
_QUOTES = {ord("’"): "'", ord("‘"): "'", ord("“"): '"', ord("”"): '"', ord("º"): "°"}
_SIGNS = {
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "∗": "*",
    "÷": "/",
    "⁄": "/",
    "∕": "/",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "°": r"^\circ ",
    "≈": r"\approx ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "ℝ": r"\mathbb{R}",
    "⩽": r"\le ",
    "⩾": r"\ge ",
}
_GREEK = {
    character: f"\\{unicodedata.name(character).split()[-1].lower()} "
    for character in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
}
_GREEK |= {upper: f"\\{_GREEK[upper].strip()[1:].capitalize()} " for upper in "ΓΔΘΛΞΠΣΦΨΩ"}
_MATHEMATICAL = str.maketrans({**_SIGNS, **_GREEK})
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[a-z])?")
_LAYOUT = re.compile(
    r"\\(?:left|right|bigl?|bigr|Bigl?|Bigr|displaystyle|limits)(?![a-zA-Z])|\\!|(?<!\\)\$|\\[()]|\\mathop"
)
_SPACES = re.compile(r"(?<!\\)\\[,;: >]|\\q?quad(?![a-zA-Z])|~")
_GROUP = r"(?:\{,\}|\\,|\\!,\\!|\\!,|,\\! ?|\\!| |'|\\ |\\;|\\:)"
_GROUPS = re.compile(rf"(?<![\d.,])\d{{1,3}}({_GROUP})\d{{3}}(?:\1\d{{3}})*(?![\d/]|,\d)")
_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|operatorname|mbox|bf|rm)\s*\{([^{}]*)\}"
)


def clean(text: str) -> str:
    """One spelling of the characters: digits, dashes, quotes, spaces, fractions, raised and lowered digits."""
    text = text.translate(_DROPPED)
    if not text.isascii():
        text = "".join(rf"\frac{{{_FRACTIONS[c][0]}}}{{{_FRACTIONS[c][1]}}}" if c in _FRACTIONS else c for c in text)
        text = _RAISED_RUN.sub(lambda run: "^{" + run[0].translate(_RAISED) + "}", text)
        text = _LOWERED_RUN.sub(lambda run: "_{" + run[0].translate(_LOWERED) + "}", text)
        text = unicodedata.normalize("NFKC", text.replace("ℝ", r"\mathbb{R}").translate(_DASHES).translate(_QUOTES))
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return " ".join(text.split())


def plain(text: str) -> str:
    """A clean text without what only sets it: dollar signs in pairs, sizes of brackets, spaces within numbers."""
    currency = text.count("$") == 1 or r"\$" in text
    text = text.replace(r"\$", "$").replace(r"\%", "%").replace(r"\&", "&").replace(r"\#", "#")
    text = _GROUPS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    text = _LAYOUT.sub(lambda match: "$" if match[0] == "$" and currency else "", text)
    text = _SPACES.sub(" ", text)
    if not set("([{") & set(re.sub(r"\\frac\{\w*\}\{\w*\}|\\?text\{[^{}]*\}|\^\{[^{}]*\}", "", text)):
        text = _COMMAS.sub(lambda match: match[0].replace(",", ""), text)
    return " ".join(text.split()).strip()


def unwrapped(text: str) -> str:
    r"""A plain text out of wrappers such as ``\text{}``."""
    return " ".join(_WRAPPER.sub(r" \1 ", text).replace(" ^", "^").split()) if "\\" in text else text


def mathematical(text: str) -> str:
    """A plain text with the commands of LaTeX for the signs of mathematics."""
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1]}}}" if match[1] else r"\sqrt ", text).translate(_MATHEMATICAL)
    text = re.sub(r"\\frac\s*(\d)\s*(?=\S)", r"\\frac{\1}", re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text))
    text = re.sub(r"(\\frac\{[^{}]*\})\s*(\w)", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\d.}/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"\\(begin|end)\s*\{[pb]?matrix\}", r"\\\1matrix ", text)
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{\s*(and|or)\s*\}", r" \1 ", text)
    text = re.sub(r"^\\?\{\s*[a-z]\s*(?:\||\\mid(?![a-z])|:)(.*?)\\?\}$", r"\1", text)
    text = re.sub(r"(\d*)\.(\d*)\\overline\s*\{(\d{1,40})\}", _repeating, text)
    text = re.sub(r"\\[lr]?vert(?![a-z])", "|", text)
    return text.replace("**", "^").replace(r"\{", "\\lbrace ").replace(r"\}", "\\rbrace ")


def _repeating(match: re.Match[str]) -> str:
    """A decimal whose last digits repeat, as a fraction."""
    once, again = match[1] + match[2], match[3]
    numerator = int(once + again) - int(once or 0)
    return rf"\frac{{{numerator}}}{{{'9' * len(again)}{'0' * len(match[2])}}}"

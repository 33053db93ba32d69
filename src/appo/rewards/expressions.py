"""Reads mathematics into trees, within bounds of length and depth."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]
"""A node: its kind, and what it is made of."""

MAX_LENGTH = 512
MAX_DEPTH = 30
MAX_TOKENS = 150
_MAX_NAME = 256
"""Longest name of a variable, in characters: each name within a name doubles the escapes of the inner one."""
_FUNCTION_NAMES = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt max min gcd lcm det arg
"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_NAMES = {"infinity": r"\infty", "inf": r"\infty", "pi": r"\pi", "le": r"\le"}
_TOKEN = re.compile(
    r"\s+|\\[a-zA-Z]+|\\\\|\d+(?:\.\d+|\.(?!\d))?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[a-zA-Z]+|<=|>=|!=|."
)
_RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=",
    r"\geqslant": ">=", "<=": "<=", ">=": ">=", r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", "!=": "!=",
    r"\in": "in", r"\equiv": "mod", ":": ":",
}  # fmt: skip
_CLOSING: dict[str, Any] = {
    "(": ")]", "[": ")]", "{": "}", "]": "[]", r"\lbrace": (r"\rbrace",), r"\langle": (r"\rangle",),
}  # fmt: skip
_NOT_READ_NAMES = """endmatrix not rbrace rangle int oint sum prod lim partial nabla lfloor rfloor lceil rceil
forall exists to rightarrow mapsto mid ldots cdots dots subset notin"""
_NOT_READ = frozenset(_NOT_READ_NAMES.split())
_SPECIAL = {r"\emptyset", r"\varnothing"}


class NotReadError(ValueError):
    """A text is no mathematics that is understood here."""


def read(text: str) -> Tree:
    """The tree of an answer: ``("list", items, connective)``, one item if it is no list.

    Raises:
        NotReadError: if it is not understood, too long, or nested too deeply.
    """
    if len(text) > MAX_LENGTH:
        raise NotReadError("too long")
    tokens = _tokens(text)
    if len(tokens) > MAX_TOKENS:
        raise NotReadError("too many parts")
    reader = _Reader(tokens)
    tree = reader.items(())
    if reader.token:
        raise NotReadError(reader.token)
    return tree


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token.isspace():
            continue
        if token.isalpha() and len(token) > 1 and token not in FUNCTIONS and token not in ("and", "or"):
            if token.lower() in _NAMES:
                tokens.append(_NAMES[token.lower()])
            elif len(token) > 3:
                raise NotReadError(token)
            else:
                tokens += token
        else:
            tokens.append(token)
    return tokens


def _named(name: str) -> Tree:
    if len(name) > _MAX_NAME:
        raise NotReadError("a name too long")
    return "variable", name


class _Reader:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = [*tokens, ""]
        self.position = 0
        self.depth = 0
        self.in_bars = False

    @property
    def token(self) -> str:
        return self.tokens[self.position]

    def take(self, *expected: str) -> str:
        token = self.token
        if not token or (expected and token not in expected):
            raise NotReadError(token)
        self.position += 1
        return token

    def items(self, stops: tuple[str, ...] | str) -> Tree:
        items: list[Tree] = []
        connectives = set()
        while True:
            items.append(self.relation())
            separator = ""
            while self.token and self.token in (",", ";", "and", "or"):
                separator = self.take()
                connectives.add(separator)
            if not separator or self.token in stops:
                return "list", tuple(items), "and" if "and" in connectives else "or"

    def relation(self) -> Tree:
        if self.token == r"\approx":
            self.take()
        chain: list[Any] = [None if self.token in _RELATIONS else self.union()]
        while self.token in _RELATIONS:
            chain += [_RELATIONS[self.take()], self.union()]
        return chain[0] if len(chain) == 1 else ("relation", *chain)

    def union(self) -> Tree:
        tree = self.sum()
        while self.token in (r"\cup", r"\cap", r"\setminus", "U"):
            operator = self.take()
            tree = (r"\cup" if operator == "U" else operator, tree, self.sum())
        return tree

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotReadError("nested too deeply")
        tree = self.signed(("number", Fraction(0))) if self.token in ("+", "-", r"\pm", r"\mp") else self.product()
        while self.token in ("+", "-", r"\pm", r"\mp"):
            tree = self.signed(tree)
        self.depth -= 1
        return tree

    def signed(self, left: Tree) -> Tree:
        sign = self.take()
        right = self.product()
        return ("+", left, ("negative", right) if sign == "-" else right) if sign in "+-" else (sign, left, right)

    def product(self) -> Tree:
        tree = self.factor()
        while True:
            token = self.token
            if token in ("*", r"\cdot", r"\times"):
                self.take()
                tree = ("*", tree, self.factor())
            elif token in ("/", r"\div"):
                self.take()
                tree = ("/", tree, self.factor())
            elif self.begins_factor(token):
                right = self.factor()
                if right[0] == "number":
                    raise NotReadError("two numbers side by side")
                tree = self.beside(tree, right)
            else:
                return tree

    def begins_factor(self, token: str) -> bool:
        if token == "|":
            return not self.in_bars
        if token in _RELATIONS or token in (
            ",",
            "and",
            "or",
            "U",
            r"\cup",
            r"\cap",
            r"\setminus",
            r"\pm",
            r"\mp",
            r"\rbrace",
            r"\rangle",
        ):
            return False
        return bool(token) and (
            token[0].isalnum()
            or token in ("(", "{")
            or (token[0] == "\\" and token[1:].isalpha() and token != r"\endmatrix")
        )

    @staticmethod
    def beside(left: Tree, right: Tree) -> Tree:
        """A product without a sign, or a mixed number."""
        parts = (left, *right[1:]) if right[0] == "/" else ()
        if parts and all(part[0] == "number" and part[1].denominator == 1 for part in parts):
            if right[1][1] >= right[2][1]:
                raise NotReadError("mixed number with an improper fraction")
            return "number", left[1] + right[1][1] / right[2][1]
        return "*", left, right

    def factor(self) -> Tree:
        if self.token in ("-", "+"):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise NotReadError("nested too deeply")
            sign = self.take()
            tree = self.factor()
            self.depth -= 1
            return ("negative", tree) if sign == "-" else tree
        tree = self.atom()
        while self.token in ("^", "!", "%", "'", "_"):
            operator = self.take()
            if operator in "^_" and self.token == r"\circ":
                self.take()
                tree = ("degrees", tree)
            elif operator == "_":
                tree = _named(repr((tree, self.argument())))
            elif operator == "^" and self.tokens[self.position : self.position + 3] == ["{", r"\circ", "}"]:
                self.position += 3
                tree = ("degrees", tree)
            else:
                tree = (
                    {"^": "^", "!": "!", "%": "%", "'": "prime"}[operator],
                    tree,
                    *([self.argument()] if operator == "^" else []),
                )
        return tree

    def argument(self) -> Tree:
        if self.token in ("-", "+"):
            return ("negative", self.atom()) if self.take() == "-" else self.atom()
        return self.atom()

    def atom(self) -> Tree:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            if re.search(r"[eE][+-]?\d{4}", token):
                raise NotReadError(token)
            return "number", Fraction(token)
        if token in _SPECIAL:
            return "set", ()
        if token == "|":
            before, self.in_bars = self.in_bars, True
            tree = self.sum()
            self.in_bars = before
            self.take("|")
            return "function", "abs", tree
        if token in _CLOSING:
            return self.bracket(token)
        name = token.lstrip("\\")
        if name == "beginmatrix":
            return self.matrix()
        if name == "frac":
            return "/", self.atom(), self.atom()
        if name in ("binom", "tbinom", "dbinom"):
            return "function", "binom", self.atom(), self.atom()
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("text", "mathrm", "mathbb", "mathbf", "overline", "vec", "hat"):
            return _named(f"{name} {self.atom()!r}")
        if token.isalpha() or (token[0] == "\\" and name.isalpha() and name not in _NOT_READ):
            return "variable", {"varphi": "phi", "varepsilon": "epsilon"}.get(name, name)
        raise NotReadError(token)

    def function(self, name: str) -> Tree:
        base: tuple[Tree, ...] = ()
        power = None
        if name == "sqrt" and self.token == "[":
            self.take()
            base = (self.sum(),)
            self.take("]")
        while self.token in ("_", "^"):
            if self.take() == "_":
                base = (self.argument(),)
            else:
                power = self.argument()
        argument = self.argument() if self.token in ("(", "{", "-") or name == "sqrt" else self.factor()
        is_letter = self.token.lstrip("\\").isalpha() and self.token.lstrip("\\") not in {*FUNCTIONS, "frac"}
        if (
            is_letter
            and self.begins_factor(self.token)
            and name != "sqrt"
            and self.tokens[self.position - 1] not in ")}"
        ):
            argument = ("*", argument, self.factor())
        tree = "function", name, argument, *base
        return tree if power is None else ("^", tree, power)

    def bracket(self, opening: str) -> Tree:
        if self.token in _CLOSING[opening] and self.token:
            self.take()
            return "set", ()
        bars, self.in_bars = self.in_bars, False
        items = self.items(_CLOSING[opening])[1]
        self.in_bars = bars
        closing = self.take(*_CLOSING[opening])
        if opening == r"\lbrace" or (opening == "{" and len(items) > 1):
            return "set", items
        if len(items) == 1 and opening in "({" and closing in ")}":
            return items[0]  # type: ignore[no-any-return]
        if opening == "]" or closing == "[":
            opening, closing = {"]": "(", "[": "["}.get(opening, opening), {"[": ")"}.get(closing, closing)
        return "tuple", opening, closing, items

    def matrix(self) -> Tree:
        rows: list[list[Tree]] = [[self.sum()]]
        while self.token in ("&", "\\\\"):
            if self.take() == "&":
                rows[-1].append(self.sum())
            elif self.token != r"\endmatrix":
                rows.append([self.sum()])
        self.take(r"\endmatrix")
        return "matrix", tuple(map(tuple, rows))

"""Compares answers in mathematics: lists, sets, intervals, inequalities, equations, and what these are made of."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from appo.rewards.expressions import NotReadError, Tree, read
from appo.rewards.values import equal_values, proportional

_INFINITY: Tree = ("variable", "infty")
_MINUS_INFINITY: Tree = ("+", ("number", Fraction(0)), ("negative", _INFINITY))
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_MAX_ITEMS = 32


def same_mathematics(one: str, other: str) -> bool | None:
    """Whether two answers are the same mathematics; None if they are not understood well enough to tell."""
    try:
        left, right = read(one), read(other)
    except NotReadError:
        return None
    try:
        return _same(_normal(left), _normal(right))
    except RecursionError:
        return None


def _normal(tree: Tree) -> Tree:
    """Lists of one become their item, ± two items, inequalities intervals."""
    if tree[0] == "list":
        items = tuple(item for part in tree[1] for item in _alternatives(_normal(part)))
        return items[0] if len(items) == 1 else ("list", items, tree[2])
    if tree[0] == "relation":
        return _relation(list(tree[1:]))
    if tree[0] == r"\cup":
        parts: list[Tree] = []
        for side in map(_normal, tree[1:]):
            parts += side[1] if side[0] == "list" else [side]
        return "list", tuple(parts), "or"
    if tree[0] == "set":
        items = tuple(item for part in tree[1] for item in _alternatives(_normal(part)))
        return items[0] if len(items) == 1 else ("set", items)
    if tree[0] == "tuple":
        return "tuple", tree[1], tree[2], tuple(map(_normal, tree[3])), None
    if tree == ("variable", "mathbb ('variable', 'R')"):
        return "tuple", "(", ")", (_MINUS_INFINITY, _INFINITY), None
    return tree


def _alternatives(tree: Tree) -> tuple[Tree, ...]:
    if not _holds_sign(tree):
        return (tree,)
    return _with_sign(tree, plus=True), _with_sign(tree, plus=False)


def _holds_sign(tree: Any) -> bool:
    return isinstance(tree, tuple) and bool(tree) and (tree[0] in (r"\pm", r"\mp") or any(map(_holds_sign, tree)))


def _with_sign(tree: Any, *, plus: bool) -> Any:
    if not isinstance(tree, tuple):
        return tree
    parts = tuple(_with_sign(part, plus=plus) for part in tree)
    if not parts or parts[0] not in (r"\pm", r"\mp"):
        return parts
    right = parts[2] if plus == (parts[0] == r"\pm") else ("negative", parts[2])
    return "+", parts[1], right


def _relation(chain: list[Any]) -> Tree:
    operators = chain[1::2]
    if chain[0] is None and operators == ["="]:
        return _normal(chain[2])
    if operators == ["in"] and chain[0] is not None and (_is_variable(chain[0]) or chain[0][0] == "tuple"):
        return _normal(chain[2])
    if operators == ["="]:
        return "equation", chain[0], chain[2]
    if len(chain) == 3 and operators[0] in _FLIPPED:
        left, operator, right = chain
        if left is None or (_is_variable(left) and _is_constant(right)):
            return _ray(left, operator, right)
        if _is_variable(right) and _is_constant(left):
            return _ray(right, _FLIPPED[operator], left)
        low, high = (left, right) if operator[0] == "<" else (right, left)
        return "inequality", len(operator), ("+", high, ("negative", low))
    if len(chain) == 5 and len({operator[0] for operator in operators}) == 1 and operators[0] in _FLIPPED:
        if operators[0][0] == ">":
            chain, operators = chain[::-1], [_FLIPPED[operator] for operator in operators[::-1]]
        if _is_variable(chain[2]):
            brackets = "[" if operators[0] == "<=" else "(", "]" if operators[1] == "<=" else ")"
            return "tuple", *brackets, (chain[0], chain[4]), chain[2]
    return "relation", *chain


def _ray(variable: Tree | None, operator: str, bound: Tree) -> Tree:
    inner = {"<": ")", "<=": "]", ">": "(", ">=": "["}[operator]
    if operator[0] == "<":
        return "tuple", "(", inner, (_MINUS_INFINITY, bound), variable
    return "tuple", inner, ")", (bound, _INFINITY), variable


def _is_variable(tree: Any) -> bool:
    return isinstance(tree, tuple) and tree[0] == "variable" and tree[1] not in ("pi", "e", "i", "infty")


def _is_constant(tree: Any) -> bool:
    if not isinstance(tree, tuple):
        return True
    return not _is_variable(tree) and all(map(_is_constant, tree))


def _same(one: Tree, other: Tree) -> bool | None:
    if one == other:
        return True
    kinds = one[0], other[0]
    if "equation" in kinds:
        return _same_equation(one, other)
    if "list" in kinds or "set" in kinds:
        if not set(kinds) <= {"list", "set"}:
            return False
        if kinds == ("list", "list") and one[2] != other[2] and any(item[0] == "tuple" for item in one[1] + other[1]):
            return False
        return _same_items(one[1], other[1])
    if kinds == ("tuple", "tuple"):
        if one[1:3] != other[1:3] or len(one[3]) != len(other[3]):
            return False
        if None not in (one[4], other[4]) and one[4] != other[4]:
            return False
        return _all(_same(left, right) for left, right in zip(one[3], other[3], strict=True))
    if kinds == ("matrix", "matrix"):
        if list(map(len, one[1])) != list(map(len, other[1])):
            return False
        cells = zip((c for row in one[1] for c in row), (c for row in other[1] for c in row), strict=True)
        return _all(_same(left, right) for left, right in cells)
    if kinds == ("inequality", "inequality"):
        return one[1] == other[1] and proportional(one[2], other[2], positive=True)
    if kinds == ("relation", "relation"):
        if one[2::2] != other[2::2] or len(one) != len(other) or None in one + other:
            return False
        return _all(_same(left, right) for left, right in zip(one[1::2], other[1::2], strict=True))
    if set(kinds) & {"tuple", "matrix", "inequality", "relation"}:
        return False
    return equal_values(one, other)


def _same_equation(one: Tree, other: Tree) -> bool | None:
    if one[0] != other[0]:
        equation, value = (one, other) if one[0] == "equation" else (other, one)
        if value[0] in ("list", "set", "inequality", "relation", "matrix"):
            return False
        named = [side for name, side in (equation[1:], equation[:0:-1]) if _is_name(name)]
        return any(_same(_normal(side), value) for side in named)
    left, right = (("+", tree[1], ("negative", tree[2])) for tree in (one, other))
    if one[1] == other[1] and (same := _same(_normal(one[2]), _normal(other[2]))):
        return same
    return proportional(left, right, positive=False)


def _is_name(tree: Tree) -> bool:
    """A variable, or a function of one: what a value is given a name with."""
    return _is_variable(tree) or (tree[0] == "*" and _is_variable(tree[1]) and _is_variable(tree[2]))


def _same_items(one: tuple[Tree, ...], other: tuple[Tree, ...]) -> bool | None:
    if len(one) > _MAX_ITEMS or len(other) > _MAX_ITEMS:
        return None
    if len(one) != len(other):
        return False
    left = list(other)
    for item in one:
        match = next((number for number, candidate in enumerate(left) if _same(item, candidate)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _all(verdicts: Any) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True

"""Arithmetic questions over small whole numbers."""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable

MAX_RESULT = 199
"""Greatest result; the least is 0."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}

_STORIES = (
    ("{name} has {x} {things}, finds {y} more and gives away {z}. How many are left?", "{x}+{y}-{z}"),
    ("{name} packs {x} {things} into each of {k} boxes and adds {y} loose ones. How many is that?", "{x}*{k}+{y}"),
    ("{name} buys {k} bags of {x} {things} and eats {y}. How many are left?", "{x}*{k}-{y}"),
    ("{name} had {x} {things}, lost {y} and lost {z} again. How many are left?", "{x}-{y}-{z}"),
)
"""Text and calculation; `k` is a factor, `x`, `y` and `z` are numbers of any size."""

_THINGS = ("apples", "books", "coins", "pens", "eggs", "nuts")


def evaluate(code: str) -> int:
    """The value of a sum, difference or product of whole numbers, as Python computes it.

    Raises:
        ValueError: if `code` is anything else.
    """
    return _value(ast.parse(code, mode="eval").body)


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"code must hold whole numbers, +, - and * alone, got {ast.unparse(node)}")


def draw_expression(max_number: int, rng: random.Random) -> tuple[tuple[str, ...], str]:
    """Two or three numbers with different signs between them.

    Returns:
        The numbers, and the expression.
    """
    while True:
        numbers = [str(rng.randint(2, max_number))]
        code = numbers[0]
        for sign in rng.sample("+-*", rng.randint(1, 2)):
            numbers.append(str(rng.randint(2, 9 if sign == "*" else max_number)))
            code += sign + numbers[-1]
        if 0 <= evaluate(code) <= MAX_RESULT:
            return tuple(numbers), code


def draw_story(name: str, max_number: int, rng: random.Random) -> tuple[tuple[str, ...], str, str]:
    """A short story with a number in question.

    Returns:
        The numbers, the story, and the calculation that answers it.
    """
    while True:
        text, code = rng.choice(_STORIES)
        values = {key: str(rng.randint(2, max_number)) for key in "xyz"} | {"k": str(rng.randint(2, 9))}
        numbers = tuple(value for key, value in values.items() if f"{{{key}}}" in code)
        code = code.format(**values)
        if 0 <= evaluate(code) <= MAX_RESULT:
            return numbers, text.format(name=name, things=rng.choice(_THINGS), **values), code

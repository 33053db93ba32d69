"""Compares trees of mathematics by their values: exactly where numbers are rational, else where floats can tell."""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable
from fractions import Fraction

from appo.rewards.expressions import Tree

Value = Fraction | complex

_MAX_BITS = 2048
_MAX_FACTORIAL = 100
NUM_POINTS = 6
_CONSTANTS: dict[str, complex] = {"pi": math.pi, "e": math.e, "i": 1j}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "exp": cmath.exp,
    "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip


class NoValueError(ValueError):
    """An expression has no value here, or none that is exact enough to compare."""


def equal_values(one: Tree, other: Tree) -> bool | None:
    """Whether two expressions are one function of their variables; None if their values do not tell."""
    if one == other:
        return True
    try:
        pairs = [(value(one, point), value(other, point)) for point in range(NUM_POINTS)]
    except (NoValueError, ZeroDivisionError, OverflowError, ValueError):
        return None
    return all(close(left, right) for left, right in pairs)


def proportional(one: Tree, other: Tree, *, positive: bool) -> bool | None:
    """Whether one expression is a constant multiple of the other; None if their values do not tell."""
    try:
        ratios = [value(one, point) / value(other, point) for point in range(NUM_POINTS)]
    except (NoValueError, ZeroDivisionError, OverflowError, ValueError):
        return None
    ratio = complex(ratios[0])
    if ratio == 0.0 or (positive and not (abs(ratio.imag) < 1e-9 and ratio.real > 0.0)):
        return False
    return all(close(ratio, other) for other in ratios)


def close(one: Value, other: Value) -> bool:
    """Whether two values are equal, exactly if both are rational."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    for exact in (one, other):
        if isinstance(exact, Fraction) and max(abs(exact.numerator), exact.denominator) > 10**12:
            return False
    left, right = complex(one), complex(other)
    return abs(left - right) <= 1e-11 * max(abs(left), abs(right), 1e-4)


def value(tree: Tree, point: int) -> Value:
    """The value at one of the points that all comparisons share.

    Raises:
        NoValueError: if there is none that is exact enough.
    """
    kind = tree[0]
    if kind == "number":
        return _bounded(tree[1])
    if kind == "variable":
        return _constant_or_coordinate(tree[1], point)
    if kind == "function":
        return _function(tree[1], [value(argument, point) for argument in tree[2:]])
    if kind not in ("+", "*", "/", "^", "negative", "!", "%", "degrees"):
        raise NoValueError(kind)
    values = [value(part, point) for part in tree[1:]]
    if kind == "^":
        return _power(*values)
    if kind == "+":
        return _sum(*values)
    if kind == "negative":
        return -values[0]
    if kind == "!":
        return _factorial(values[0])
    if kind in ("%", "degrees"):
        return values[0] / 100 if kind == "%" else _inexact(values[0]) * math.pi / 180
    left, right = (_bounded(v) if isinstance(v, Fraction) else v for v in values)
    if not (isinstance(left, Fraction) and isinstance(right, Fraction)):
        left, right = _inexact(left), _inexact(right)
    return _bounded(left * right if kind == "*" else left / right)


def _constant_or_coordinate(name: str, point: int) -> Value:
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    draw = zlib.crc32(f"{name} {point}".encode())
    coordinate = Fraction(3 + draw % 89, 7 + (draw >> 8) % 31)
    # All positive, all negative, then signs that differ from variable to variable: |x| is not x.
    is_negative = point == 1 or (point > 1 and zlib.crc32(name.encode()) >> point & 1)
    return -coordinate if is_negative else coordinate


def _bounded(number: Value) -> Value:
    if isinstance(number, Fraction) and number.numerator.bit_length() + number.denominator.bit_length() > _MAX_BITS:
        raise NoValueError("too many digits")
    return number


def _inexact(number: Value) -> complex:
    """A float that keeps all that distinguishes a number."""
    if isinstance(number, Fraction) and max(number.numerator.bit_length(), number.denominator.bit_length()) > 40:
        raise NoValueError("too many digits for a float")
    return complex(number)


def _sum(left: Value, right: Value) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _bounded(left + right)
    left, right = _inexact(left), _inexact(right)
    if min(abs(left), abs(right)) < 1e-7 * max(abs(left), abs(right)) and left and right:
        raise NoValueError("a summand is lost in rounding")
    return left + right


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent) * bits > _MAX_BITS:
                raise NoValueError("too many digits")
            return base ** int(exponent)
        if exponent == Fraction(1, 2):
            return _function("sqrt", [base])
        if base < 0:
            raise NoValueError("a root of a negative number")
    return _inexact(base) ** _inexact(exponent)


def _factorial(number: Value) -> Value:
    if isinstance(number, Fraction) and number.denominator == 1:
        if not 0 <= number <= _MAX_FACTORIAL:
            raise NoValueError("no factorial")
        return Fraction(math.factorial(int(number)))
    if isinstance(number, Fraction) and abs(number) < _MAX_FACTORIAL:
        return complex(math.gamma(float(number) + 1))
    raise NoValueError("no factorial")


def _function(name: str, arguments: list[Value]) -> Value:
    first = arguments[0]
    if name == "abs":
        return abs(first) if isinstance(first, Fraction) else complex(abs(first))
    if name == "sqrt":
        degree = arguments[1] if len(arguments) > 1 else Fraction(2)
        if isinstance(first, Fraction) and degree == 2 and first >= 0:
            roots = math.isqrt(first.numerator), math.isqrt(first.denominator)
            if (roots[0] ** 2, roots[1] ** 2) == (first.numerator, first.denominator):
                return Fraction(*roots)
        return _inexact(first) ** (1 / _inexact(degree))
    if name in ("ln", "log"):
        logarithm = cmath.log(_inexact(first))
        if name == "ln" or len(arguments) == 1:
            return logarithm
        return logarithm / cmath.log(_inexact(arguments[1]))
    if name == "binom":
        top, bottom = arguments
        if not isinstance(top, Fraction) or not isinstance(bottom, Fraction):
            raise NoValueError(name)
        return _factorial(top) / (_factorial(bottom) * _factorial(top - bottom))
    if name in _FUNCTIONS and len(arguments) == 1:
        return _FUNCTIONS[name](_inexact(first))
    raise NoValueError(name)

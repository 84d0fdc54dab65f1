"""The numbers behind the calculator: exact whole numbers to 1,000 digits, decimals of 40 digits, and bounded
functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from fractions import Fraction

from mixquant_tools.errors import LimitError, ToolInputError

__all__ = [
    "CONSTANTS",
    "CONTEXT",
    "FUNCTIONS",
    "MAX_DIGITS",
    "Number",
    "bounded",
    "divide",
    "floored",
    "power",
    "remainder",
    "show",
    "tidy",
    "whole",
]

Number = int | Decimal

MAX_DIGITS = 1_000

CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN, Emax=MAX_DIGITS, Emin=-MAX_DIGITS)
CONSTANTS = {
    "pi": Decimal("3.141592653589793238462643383279502884197"),
    "e": Decimal("2.718281828459045235360287471352662497757"),
    "tau": Decimal("6.283185307179586476925286766559005768394"),
}


def _size(value: Number) -> Number:
    return -value if value < 0 else value


def whole(value: Number, what: str, limit: int) -> int:
    if value != int(value) or not 0 <= value <= limit:
        raise ToolInputError(f"{what} needs a whole number from 0 to {limit}, not {show(value)}")
    return int(value)


def _float(function: Callable[..., float]) -> Callable[..., Number]:
    return lambda *values: Decimal(repr(function(*(float(value) for value in values))))


def _round(value: Number, digits: Number = 0) -> Number:
    decimals = whole(_size(digits), "round", 30)
    if isinstance(value, int) and digits >= 0:
        return value
    quantum = Decimal(1).scaleb(-decimals if digits >= 0 else decimals)
    return tidy(Decimal(value).quantize(quantum, rounding="ROUND_HALF_UP"))


def _log(value: Number, base: Number | None = None) -> Number:
    if value <= 0:
        raise ToolInputError(f"the logarithm of {show(value)} does not exist")
    if base is None:
        return Decimal(value).ln()
    with localcontext(prec=CONTEXT.prec + 10):  # so that the logarithm of 125 to 5 is 3, and not a little less
        logarithm = Decimal(value).ln() / Decimal(base).ln()
    return CONTEXT.plus(logarithm)


FUNCTIONS: dict[str, tuple[int, int, Callable[..., Number]]] = {  # name: fewest and most arguments, function
    "abs": (1, 1, _size),
    "sqrt": (1, 1, lambda x: Decimal(x).sqrt()),
    "exp": (1, 1, lambda x: Decimal(x).exp()),
    "ln": (1, 1, _log),
    "log": (1, 2, _log),
    "log10": (1, 1, lambda x: _log(x, 10)),
    "log2": (1, 1, lambda x: _log(x, 2)),
    "floor": (1, 1, lambda x: math.floor(x)),
    "ceil": (1, 1, lambda x: math.ceil(x)),
    "round": (1, 2, _round),
    "min": (1, 50, lambda *xs: min(xs)),
    "max": (1, 50, lambda *xs: max(xs)),
    "sum": (1, 50, lambda *xs: sum(xs)),
    "mean": (1, 50, lambda *xs: divide(sum(xs), len(xs))),
    "gcd": (2, 50, lambda *xs: math.gcd(*(whole(_size(x), "gcd", 10**300) for x in xs))),
    "lcm": (2, 8, lambda *xs: math.lcm(*(whole(_size(x), "lcm", 10**100) for x in xs))),
    "comb": (2, 2, lambda n, k: math.comb(whole(n, "comb", 2_000), whole(k, "comb", 2_000))),
    "perm": (2, 2, lambda n, k: math.perm(whole(n, "perm", 400), whole(k, "perm", 400))),
    "factorial": (1, 1, lambda n: math.factorial(whole(n, "factorial", 400))),
    **{
        name: (1, 1, _float(getattr(math, name)))
        for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh")
    },
    "degrees": (1, 1, _float(math.degrees)),
    "radians": (1, 1, _float(math.radians)),
    "hypot": (2, 2, _float(math.hypot)),
}


def tidy(value: Number) -> Number:
    """A decimal that is whole becomes an int, so that it stays exact."""
    if isinstance(value, Decimal) and value == value.to_integral_value() and abs(value.adjusted()) < 38:
        return int(value)
    return value


def divide(left: Number, right: Number) -> Number:
    if right == 0:
        raise ToolInputError("division by zero")
    if isinstance(left, int) and isinstance(right, int) and left % right == 0:
        return left // right
    return Decimal(left) / Decimal(right)


def power(base: Number, exponent: Number) -> Number:
    if base == 0 and exponent < 0:
        raise ToolInputError("0 to a negative power does not exist")
    if base != 0 and _size(exponent) * _size(Decimal(_size(base)).log10()) > MAX_DIGITS:
        raise LimitError(f"{show(base)}^{show(exponent)} has more than {MAX_DIGITS} digits")
    if isinstance(base, int) and isinstance(exponent, int):
        if abs(base) <= 1 or exponent == 0:
            return base ** (abs(exponent) % 2) if base else int(exponent == 0)
        return base**exponent if exponent > 0 else divide(1, base**-exponent)
    if base < 0 and exponent != int(exponent):
        raise ToolInputError(f"{show(base)}^{show(exponent)} is not a real number")
    return Decimal(base) ** Decimal(exponent)


def floored(left: Number, right: Number) -> Number:
    """The whole number at or below the exact quotient: 40 digits of it would not be enough."""
    if right == 0:
        raise ToolInputError("division by zero")
    return bounded(math.floor(Fraction(left) / Fraction(right)))


def remainder(left: Number, right: Number) -> Number:
    """With the sign of the divisor, as in mathematics and Python."""
    rest = Fraction(left) - Fraction(right) * int(floored(left, right))
    return divide(rest.numerator, rest.denominator)


def show(value: Number) -> str:
    """Whole numbers in full, others with 15 significant digits and no trailing zeros."""
    if isinstance(value, int):
        return str(value)
    if value.is_nan() or value.is_infinite():
        raise ToolInputError("the result is not a number")
    rounded = Context(prec=15).plus(value).normalize()
    return f"{rounded:f}" if -15 <= rounded.adjusted() <= 20 else f"{rounded:E}"


def bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > 3.33 * MAX_DIGITS:
        raise LimitError(f"the result has more than {MAX_DIGITS} digits")
    return value

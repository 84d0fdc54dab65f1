"""Arithmetic by a small recursive-descent parser: no ``eval``, no names but these functions, every cost bounded.

Grammar, loosest first::

    sum     = product (("+" | "-") product)*
    product = sign (("*" | "×" | "/" | "÷" | "//" | "%" | "mod" | "of") sign)*
    sign    = ("-" | "+")* power
    power   = postfix (("^" | "**") sign)?          right-associative; -2^2 = -4
    postfix = atom ("!" | "%")*                     50% = 0.5; a % before an operand is the remainder
    atom    = number | constant | function "(" sum ("," sum)* ")" | "(" sum ")"

Whole numbers stay exact (to 1,000 digits), others are decimals of 40 digits, shown with 15.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, DecimalException, localcontext

from langchain_core.tools import StructuredTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import LimitError, ToolInputError

__all__ = ["calculate", "calculator_tool"]

Number = int | Decimal

MAX_LENGTH = 500
MAX_DEPTH = 40
MAX_DIGITS = 1_000

_CONTEXT = Context(prec=40, rounding=ROUND_HALF_EVEN, Emax=MAX_DIGITS, Emin=-MAX_DIGITS)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?=\.?\d)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d*)?(?:[eE][+-]?\d{1,4}(?!\d))?)|"
    r"(?P<name>[A-Za-z_π][A-Za-z_0-9]*)|(?P<mark>\*\*|//|[-+*/×÷−^%!(),]))"
)
_MARKS = {"×": "*", "÷": "/", "−": "-", "**": "^"}
_CONSTANTS = {
    "pi": Decimal("3.141592653589793238462643383279502884197"),
    "e": Decimal("2.718281828459045235360287471352662497757"),
    "tau": Decimal("6.283185307179586476925286766559005768394"),
}


def _size(value: Number) -> Number:
    return -value if value < 0 else value


def _whole(value: Number, what: str, limit: int) -> int:
    if value != int(value) or not 0 <= value <= limit:
        raise ToolInputError(f"{what} needs a whole number from 0 to {limit}, not {_show(value)}")
    return int(value)


def _float(function: Callable[..., float]) -> Callable[..., Number]:
    return lambda *values: Decimal(repr(function(*(float(value) for value in values))))


def _round(value: Number, digits: Number = 0) -> Number:
    places = _whole(_size(digits), "round", 30)
    quantum = Decimal(1).scaleb(-places if digits >= 0 else places)
    return _tidy(Decimal(value).quantize(quantum, rounding="ROUND_HALF_UP"))


def _log(value: Number, base: Number | None = None) -> Number:
    if value <= 0:
        raise ToolInputError(f"the logarithm of {_show(value)} does not exist")
    return Decimal(value).ln() if base is None else Decimal(value).ln() / Decimal(base).ln()


_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Number]]] = {  # name: fewest and most arguments, function
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
    "min": (1, 50, min),
    "max": (1, 50, max),
    "sum": (1, 50, lambda *xs: sum(xs)),
    "mean": (1, 50, lambda *xs: _divide(sum(xs), len(xs))),
    "gcd": (2, 50, lambda *xs: math.gcd(*(_whole(_size(x), "gcd", 10**300) for x in xs))),
    "lcm": (2, 8, lambda *xs: math.lcm(*(_whole(_size(x), "lcm", 10**100) for x in xs))),
    "comb": (2, 2, lambda n, k: math.comb(_whole(n, "comb", 2_000), _whole(k, "comb", 2_000))),
    "perm": (2, 2, lambda n, k: math.perm(_whole(n, "perm", 400), _whole(k, "perm", 400))),
    "factorial": (1, 1, lambda n: math.factorial(_whole(n, "factorial", 400))),
    **{
        name: (1, 1, _float(getattr(math, name)))
        for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh")
    },
    "degrees": (1, 1, _float(math.degrees)),
    "radians": (1, 1, _float(math.radians)),
    "hypot": (2, 2, _float(math.hypot)),
}


def _tidy(value: Number) -> Number:
    """A decimal that is whole becomes an int, so that it stays exact."""
    if isinstance(value, Decimal) and value == value.to_integral_value() and abs(value.adjusted()) < 38:
        return int(value)
    return value


def _divide(left: Number, right: Number) -> Number:
    if right == 0:
        raise ToolInputError("division by zero")
    if isinstance(left, int) and isinstance(right, int) and left % right == 0:
        return left // right
    return Decimal(left) / Decimal(right)


def _power(base: Number, exponent: Number) -> Number:
    if base == 0 and exponent < 0:
        raise ToolInputError("0 to a negative power does not exist")
    if base != 0 and _size(exponent) * _size(Decimal(_size(base)).log10()) > MAX_DIGITS:
        raise LimitError(f"{_show(base)}^{_show(exponent)} has more than {MAX_DIGITS} digits")
    if isinstance(base, int) and isinstance(exponent, int):
        if abs(base) <= 1 or exponent == 0:
            return base ** (abs(exponent) % 2) if base else int(exponent == 0)
        return base**exponent if exponent > 0 else _divide(1, base**-exponent)
    if base < 0 and exponent != int(exponent):
        raise ToolInputError(f"{_show(base)}^{_show(exponent)} is not a real number")
    return Decimal(base) ** Decimal(exponent)


def _remainder(left: Number, right: Number) -> Number:
    if right == 0:
        raise ToolInputError("division by zero")
    return left - right * math.floor(_divide(left, right))  # sign of the divisor, as in mathematics and Python


def _show(value: Number) -> str:
    """Whole numbers in full, others with 15 significant digits and no trailing zeros."""
    if isinstance(value, int):
        return str(value)
    if value.is_nan() or value.is_infinite():
        raise ToolInputError("the result is not a number")
    rounded = Context(prec=15).plus(value).normalize()
    return f"{rounded:f}" if -15 <= rounded.adjusted() <= 20 else f"{rounded:E}"


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                raise ToolInputError(f"cannot read {text[place : place + 20]!r} at position {place + 1}")
            kind = match.lastgroup or ""
            self.tokens.append((kind, _MARKS.get(match[kind], match[kind])))
            place = match.end()
        self.at = 0
        self.depth = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end")

    def take(self, *marks: str) -> str | None:
        kind, text = self.peek()
        if kind in ("mark", "name") and text.lower() in marks:
            self.at += 1
            return text.lower()
        return None

    def need(self, mark: str) -> None:
        if not self.take(mark):
            raise ToolInputError(f"expected {mark!r} but found {self.peek()[1]!r}")

    def sum(self) -> Number:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise LimitError(f"the expression is nested deeper than {MAX_DEPTH}")
        value = self.product()
        while mark := self.take("+", "-"):
            other = self.product()
            value = _bounded(value + other if mark == "+" else value - other)
        self.depth -= 1
        return value

    def product(self) -> Number:
        value = self.sign()
        while mark := self.take("*", "/", "//", "%", "mod", "of"):
            other = self.sign()
            if mark in ("*", "of"):
                value = value * other
            elif mark == "/":
                value = _divide(value, other)
            else:
                value = math.floor(_divide(value, other)) if mark == "//" else _remainder(value, other)
            value = _bounded(value)
        return value

    def sign(self) -> Number:
        negative = False
        while mark := self.take("+", "-"):
            negative ^= mark == "-"
        value = self.power()
        return -value if negative else value

    def power(self) -> Number:
        base = self.postfix()
        if not self.take("^"):
            return base
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise LimitError(f"the expression is nested deeper than {MAX_DEPTH}")
        value = _bounded(_power(base, self.sign()))
        self.depth -= 1
        return value

    def postfix(self) -> Number:
        value = self.atom()
        while True:
            if self.take("!"):
                value = math.factorial(_whole(value, "!", 400))
            elif self.peek()[1] == "%" and not self._operand_follows():
                self.at += 1
                value = _divide(value, 100)
            else:
                return value

    def _operand_follows(self) -> bool:
        kind, text = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ("end", "")
        return kind == "number" or text == "(" or (kind == "name" and text.lower() not in ("of", "mod"))

    def atom(self) -> Number:
        kind, text = self.peek()
        self.at += 1
        if kind == "number":
            digits = text.replace(",", "")
            return _bounded(int(digits) if digits.isdigit() else _tidy(_CONTEXT.create_decimal(digits)))
        if kind == "mark" and text == "(":
            value = self.sum()
            self.need(")")
            return value
        name = {"π": "pi"}.get(text, text.lower())
        if kind == "name" and name in _FUNCTIONS:
            return self._call(name)
        if kind == "name" and name in _CONSTANTS:
            return _CONSTANTS[name]
        if kind == "name":
            known = ", ".join([*_FUNCTIONS, *_CONSTANTS])
            raise ToolInputError(f"unknown name {text[:40]!r}; known are {known}")
        raise ToolInputError(f"expected a number but found {text!r}")

    def _call(self, name: str) -> Number:
        fewest, most, function = _FUNCTIONS[name]
        self.need("(")
        values = [self.sum()]
        while self.take(","):
            values.append(self.sum())
        self.need(")")
        if not fewest <= len(values) <= most:
            raise ToolInputError(f"{name} takes {fewest} to {most} numbers, not {len(values)}")
        try:
            return _bounded(_tidy(function(*values)))
        except (ValueError, OverflowError):
            shown = ", ".join(_show(value)[:40] for value in values)
            raise ToolInputError(f"{name}({shown}) is not a real number") from None


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > 3.33 * MAX_DIGITS:
        raise LimitError(f"the result has more than {MAX_DIGITS} digits")
    return value


def calculate(expression: str) -> str:
    """The value of ``expression``, as text.

    Raises:
        ToolInputError: it cannot be read, or has no real value.
        LimitError: it is too long, nested too deeply, or its value is too large.
    """
    if len(expression) > MAX_LENGTH:
        raise LimitError(f"the expression has {len(expression)} characters, the limit is {MAX_LENGTH}")
    if not expression.strip():
        raise ToolInputError("the expression is empty")
    with localcontext(_CONTEXT):
        parser = _Parser(expression)
        try:
            value = parser.sum()
            if parser.peek()[0] != "end":
                raise ToolInputError(f"expected an operator but found {parser.peek()[1]!r}")
            return _show(_tidy(value))
        except (DecimalException, OverflowError) as error:
            raise ToolInputError(f"the value is out of range or not a real number ({type(error).__name__})") from None


class CalculatorArguments(BaseModel):
    """What to work out."""

    expression: str = Field(description="for example (3 + 4) * 2^10 / sqrt(2), or 15% of 80", max_length=MAX_LENGTH)


def calculator_tool(name: str = "calculator") -> StructuredTool:
    """A tool ``calculator(expression)``."""
    return make_tool(
        calculate,
        name=name,
        description="Work out an arithmetic expression. Knows + - * / ^ % !, sqrt, log, sin, round, min and more.",
        arguments=CalculatorArguments,
        max_output=MAX_DIGITS + 100,
    )

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
from decimal import DecimalException, localcontext

from langchain_core.tools import StructuredTool
from pydantic import BaseModel, Field

from mixquant_tools.arithmetic import (
    CONSTANTS,
    CONTEXT,
    FUNCTIONS,
    MAX_DIGITS,
    Number,
    bounded,
    divide,
    floored,
    power,
    remainder,
    show,
    tidy,
    whole,
)
from mixquant_tools.base import make_tool
from mixquant_tools.errors import LimitError, ToolInputError

__all__ = ["calculate", "calculator_tool"]

MAX_LENGTH = 500
MAX_DEPTH = 40

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?=\.?\d)(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d*)?(?:[eE][+-]?\d{1,4}(?!\d))?)|"
    r"(?P<name>[A-Za-z_π][A-Za-z_0-9]*)|(?P<mark>\*\*|//|[-+*/×÷−^%!(),]))"
)
_MARKS = {"×": "*", "÷": "/", "−": "-", "**": "^"}


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise ToolInputError(f"cannot read {text[position : position + 20]!r} at position {position + 1}")
            kind = match.lastgroup or ""
            self.tokens.append((kind, _MARKS.get(match[kind], match[kind])))
            position = match.end()
        self.at = 0
        self.depth = 0
        self.listing = 0  # functions of several numbers around this place: there a comma parts

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
            value = bounded(value + other if mark == "+" else value - other)
        self.depth -= 1
        return value

    def product(self) -> Number:
        value = self.sign()
        while mark := self.take("*", "/", "//", "%", "mod", "of"):
            other = self.sign()
            if mark in ("*", "of"):
                value = value * other
            elif mark == "/":
                value = divide(value, other)
            else:
                value = floored(value, other) if mark == "//" else remainder(value, other)
            value = bounded(value)
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
        value = bounded(power(base, self.sign()))
        self.depth -= 1
        return value

    def postfix(self) -> Number:
        value = self.atom()
        while True:
            if self.take("!"):
                value = math.factorial(whole(value, "!", 400))
            elif self.peek()[1] == "%" and not self._operand_follows():
                self.at += 1
                value = divide(value, 100)
            else:
                return value

    def _operand_follows(self) -> bool:
        kind, text = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ("end", "")
        return kind == "number" or text == "(" or (kind == "name" and text.lower() not in ("of", "mod"))

    def atom(self) -> Number:
        kind, text = self.peek()
        self.at += 1
        if kind == "number":
            if "," in text and self.listing:
                raise ToolInputError(
                    f"{text} may be one number or several; write {text.replace(',', '')} or {text.replace(',', ', ')}"
                )
            digits = text.replace(",", "")
            return bounded(int(digits) if digits.isdigit() else tidy(CONTEXT.create_decimal(digits)))
        if kind == "mark" and text == "(":
            value = self.sum()
            self.need(")")
            return value
        name = {"π": "pi"}.get(text, text.lower())
        if kind == "name" and name in FUNCTIONS:
            return self._call(name)
        if kind == "name" and name in CONSTANTS:
            return CONSTANTS[name]
        if kind == "name":
            known = ", ".join([*FUNCTIONS, *CONSTANTS])
            raise ToolInputError(f"unknown name {text[:40]!r}; known are {known}")
        raise ToolInputError(f"expected a number but found {text!r}")

    def _call(self, name: str) -> Number:
        min_values, max_values, function = FUNCTIONS[name]
        self.need("(")
        self.listing += max_values > 1
        values = [self.sum()]
        while self.take(","):
            values.append(self.sum())
        self.listing -= max_values > 1
        self.need(")")
        if not min_values <= len(values) <= max_values:
            raise ToolInputError(f"{name} takes {min_values} to {max_values} numbers, not {len(values)}")
        try:
            return bounded(tidy(function(*values)))
        except (ValueError, OverflowError):
            shown = ", ".join(show(value)[:40] for value in values)
            raise ToolInputError(f"{name}({shown}) is not a real number") from None


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
    with localcontext(CONTEXT):
        parser = _Parser(expression)
        try:
            value = parser.sum()
            if parser.peek()[0] != "end":
                raise ToolInputError(f"expected an operator but found {parser.peek()[1]!r}")
            return show(tidy(value))
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

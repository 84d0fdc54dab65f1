"""Numbers as people write them, and the number that is meant."""

from __future__ import annotations

import ast
import operator
import random
from typing import Any

__all__ = ["DRAW", "evaluate", "plain"]

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()


def plain(value: float) -> str:
    """The shortest decimal text."""
    return str(int(value)) if float(value).is_integer() else str(value)


def _bounds(args: str, default: tuple[float, float]) -> tuple[float, float]:
    span = args.split(",")[0]
    if not span:
        return default
    low, _, high = span[1:].partition("-")
    return float(span[0] + low), float(high)


def _write(value: int, rng: random.Random) -> str:
    """Digits mostly; words for small numbers, separators or "million" for large ones."""
    if 0 <= value <= 20 and rng.random() < 0.2:
        return _WORDS[value]
    if value >= 1000 and rng.random() < 0.5:
        return f"{value:,}"
    return str(value)


def _int(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    low, high = _bounds(args, (1, 500))
    value = rng.randint(int(low), int(high))
    return _write(value, rng), value


def _float(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    low, high = _bounds(args, (0.1, 100))
    digits = int(args.split(",")[1]) if "," in args else rng.choice([1, 2, 2])
    value = round(rng.uniform(low, high), digits)
    return plain(value), int(value) if value.is_integer() else value


def _num(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    roll = rng.random()
    if roll < 0.55:
        value: float = rng.randint(1, 120)
    elif roll < 0.75:
        value = rng.randint(100, 20_000)
    elif roll < 0.8:
        value = rng.randint(2, 900) * 10 ** rng.randint(3, 6)
    else:
        value = round(rng.uniform(0.05, 500), rng.choice([1, 1, 2, 3]))
    if isinstance(value, int):
        return _write(value, rng), value
    return plain(value), int(value) if value.is_integer() else value


_SCALES = ((10**6, "million"), (10**9, "billion"), (10**3, "thousand"))


def _money_value(rng: random.Random) -> float:
    roll = rng.random()
    if roll < 0.35:
        return rng.randint(2, 500)
    if roll < 0.55:
        return round(rng.uniform(1, 400), 2)
    if roll < 0.9:
        return rng.randint(5, 999) * rng.choice([10, 100, 100, 1000])
    return rng.randint(1, 99) * 10**6


def _large(value: float, rng: random.Random) -> str:
    """ "3 million" for 3000000, "2.5k" for 2500: forms whose digits are not the value's."""
    for scale, word in _SCALES:
        share = value / scale
        if 1 <= share < 1000 and float(f"{share:.2f}") * scale == value and rng.random() < 0.35:
            return f"{plain(round(share, 2))}k" if word == "thousand" else f"{plain(round(share, 2))} {word}"
    return _write(int(value), rng) if float(value).is_integer() else plain(value)


def _money(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    value = _money_value(rng)
    text = _large(value, rng)
    form = rng.choice(["${}", "${}", "{} dollars", "{} euros", "€{}", "{}", "{} USD"])
    return form.format(text), int(value) if float(value).is_integer() else value


def _amount(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    value = _money_value(rng)
    return _large(value, rng), int(value) if float(value).is_integer() else value


def _percent(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    value: float = rng.randint(1, 60) if rng.random() < 0.6 else round(rng.uniform(0.1, 30), rng.choice([1, 2]))
    value = int(value) if float(value).is_integer() else value
    return rng.choice(["{}%", "{}%", "{} percent"]).format(value), value


def _pctdec(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    surface, value = _percent(args, rng, held)
    share = round(value / 100, 6)
    return surface if rng.random() < 0.8 else str(share), share


def _expr(args: str, rng: random.Random, held: bool) -> tuple[str, Any]:
    """An arithmetic expression, in symbols or in words; the value is always symbols."""
    a, b, c = (rng.choice([rng.randint(2, 99), rng.randint(2, 9999), round(rng.uniform(0.5, 99), 1)]) for _ in range(3))
    sign, word = rng.choice(
        [("*", "times"), ("+", "plus"), ("-", "minus"), ("/", "divided by"), ("*", "multiplied by")]
    )
    roll = rng.random()
    if roll < 0.3:
        return f"{a} {word} {b}", f"{a} {sign} {b}"
    if roll < 0.4:
        second, second_word = rng.choice([("+", "plus"), ("-", "minus"), ("*", "times")])
        return f"{a} {word} {b} {second_word} {c}", f"{a} {sign} {b} {second} {c}"
    if roll < 0.5:
        share = rng.randint(2, 90)
        return rng.choice([f"{share}% of {a}", f"{share} percent of {a}"]), f"{a} * {share} / 100"
    if roll < 0.58:
        root = rng.randint(2, 60) ** 2
        return f"the square root of {root}", f"sqrt({root})"
    if roll < 0.64:
        power = rng.randint(2, 5)
        return f"{plain(a)} to the power of {power}", f"{a} ** {power}"
    if roll < 0.72:
        return (f"({a} + {b}) {sign} {c}",) * 2
    if roll < 0.8:
        return (f"{a} {sign} ({b} - {c})",) * 2
    gap = rng.choice(["", " "])
    return (f"{a}{gap}{sign}{gap}{b}",) * 2


_OPS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def evaluate(expression: str) -> str:
    """The value as the calculator tool shows it (15 digits)."""

    def walk(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return float(_OPS[type(node.op)](walk(node.left), walk(node.right)))
        if isinstance(node, ast.Call):
            return float(walk(node.args[0]) ** 0.5)
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        return -walk(node.operand)  # type: ignore[attr-defined]

    try:
        return f"{walk(ast.parse(expression, mode='eval').body):.15g}"
    except ZeroDivisionError:
        return "error: division by zero"


DRAW = {
    "amount": _amount, "expr": _expr, "float": _float, "int": _int, "money": _money, "num": _num, "pctdec": _pctdec,
    "percent": _percent, "int5": lambda args, rng, held: _int("1-6", rng, held),
}  # fmt: skip

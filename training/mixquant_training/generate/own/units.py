"""Units of the shipped conversion tool, and calls of it."""

from __future__ import annotations

import random
from typing import Any

from mixquant_training.generate.values import draw, parse

__all__ = ["UNITS", "conversion"]

UNITS: dict[str, list[tuple[tuple[str, ...], float]]] = {
    "length": [(("meters", "meter", "m"), 1.0), (("kilometers", "km"), 1000.0), (("miles", "mile"), 1609.344), (("feet", "foot", "ft"), 0.3048), (("inches", "inch"), 0.0254), (("centimeters", "cm"), 0.01), (("yards", "yard"), 0.9144), (("millimeters", "mm"), 0.001)],
    "mass": [(("kilograms", "kg"), 1.0), (("grams", "gram", "g"), 0.001), (("pounds", "pound", "lb"), 0.45359237), (("ounces", "ounce", "oz"), 0.028349523125), (("tonnes",), 1000.0)],
    "volume": [(("liters", "liter"), 1.0), (("milliliters", "ml"), 0.001), (("gallons", "gallon"), 3.785411784), (("cups", "cup"), 0.2365882365), (("pints", "pint"), 0.473176473)],
    "time": [(("seconds", "second", "s"), 1.0), (("minutes", "minute"), 60.0), (("hours", "hour"), 3600.0), (("days", "day"), 86400.0), (("weeks", "week"), 604800.0)],
    "speed": [(("km/h",), 1 / 3.6), (("m/s",), 1.0), (("mph",), 0.44704), (("knots", "knot"), 0.514444444444444)],
    "energy": [(("joules", "joule"), 1.0), (("kWh",), 3.6e6), (("calories", "calorie"), 4.184)],
}  # fmt: skip


def conversion(
    rng: random.Random, value: float | None = None, group: str | None = None, source: int | None = None
) -> tuple[float, str, str, tuple[str, dict[str, Any], str]]:
    """Value, unit given, unit wanted, and the call."""
    units = UNITS[group or rng.choice(sorted(UNITS))]
    first = rng.randrange(len(units)) if source is None else source
    second = rng.choice([index for index in range(len(units)) if index != first])
    value = value if value is not None else draw(parse("num"), rng, held=False)[1]
    a, b = rng.choice(units[first][0]), rng.choice(units[second][0])
    result = value * units[first][1] / units[second][1]
    return value, a, b, ("convert_units", {"value": value, "source": a, "target": b}, f"{value} {a} = {result:.9g} {b}")

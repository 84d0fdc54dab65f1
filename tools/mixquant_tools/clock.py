"""Time zones, dates and units."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from langchain_core.tools import BaseTool
from pydantic import BaseModel, Field

from mixquant_tools.base import make_tool
from mixquant_tools.errors import LimitError, ToolInputError, require

__all__ = ["convert_units", "time_tools", "unit_tool"]

# A full grammar of what may reach pint: names with a power of one digit, joined by * / "per" or a blank. pint's own
# parser would also work out numbers, and 9**9**9 would keep it busy for good. What joins is never empty: else the
# expression itself would try every way to cut a long name.
_UNIT = re.compile(
    r"[A-Za-zµμ°Ω%_]{1,40}(?:(?:\^|\*\*)-?[1-9])?"
    r"(?:(?:\s?[*/·]\s?|\s(?:per\s)?)[A-Za-zµμ°Ω_]{1,40}(?:(?:\^|\*\*)-?[1-9])?){0,5}"
)
_ALIASES = {
    "°c": "degC",
    "celsius": "degC",
    "°f": "degF",
    "fahrenheit": "degF",
    "c": "degC",
    "f": "degF",
    "k": "kelvin",
}


@functools.cache
def _registry() -> Any:
    return require("pint", "pint", "unit conversion").UnitRegistry(on_redefinition="ignore")


def convert_units(value: float, source: str, target: str) -> float:
    """``value`` in ``source`` units, expressed in ``target`` units.

    Raises:
        ToolInputError: a unit is unknown, or the two do not measure the same.
        LimitError: the result is too large for a number.
        MissingDependencyError: pint is not installed.
    """
    units = []
    for text in (source.strip(), target.strip()):
        if len(text) > 80 or not _UNIT.fullmatch(text):
            raise ToolInputError(f"{text[:40]!r} is not a unit; write it like km/h, kg*m^2, degC or mile per hour")
        units.append(_ALIASES.get(text.lower(), text) if text.lower() not in ("c", "f", "k") else text)
    registry = _registry()
    pint = require("pint", "pint", "unit conversion")
    try:
        source_unit, target_unit = (registry.parse_units(unit) for unit in units)
        if not source_unit.is_compatible_with(target_unit):
            source_unit, target_unit = (registry.parse_units(_ALIASES.get(unit.lower(), unit)) for unit in units)
        converted = float(registry.Quantity(value, source_unit).to(target_unit).magnitude)
    except pint.DimensionalityError as error:
        raise ToolInputError(str(error)[:200]) from None
    except (pint.PintError, AttributeError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise ToolInputError(f"cannot convert {source!r} to {target!r}: {str(error)[:150]}") from None
    if not math.isfinite(converted):
        raise LimitError(f"{value:g} {source} is too many {target} for a number")
    return converted


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolInputError(f"no time zone {name[:60]!r}; use names like Europe/Berlin or UTC") from None


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise ToolInputError(
            f"{text[:40]!r} is not a date or time; write it like 2026-03-01 or 2026-03-01T14:30"
        ) from None


def _show(moment: datetime) -> str:
    return f"{moment.isoformat(sep=' ', timespec='seconds')} ({moment:%A})"


class UnitArguments(BaseModel):
    """What to convert."""

    value: float = Field(description="the number", allow_inf_nan=False)
    source: str = Field(description="its unit, for example mile or km/h", max_length=80)
    target: str = Field(description="the unit wanted", max_length=80)


class ZoneArguments(BaseModel):
    """Where."""

    timezone: str = Field(default="UTC", description="for example Europe/Berlin", max_length=60)


class ConvertTimeArguments(BaseModel):
    """Which moment, from where to where."""

    when: str = Field(description="local date and time, for example 2026-03-01T14:30", max_length=40)
    source: str = Field(description="its time zone, for example Asia/Tokyo", max_length=60)
    target: str = Field(description="the time zone wanted", max_length=60)


class BetweenArguments(BaseModel):
    """Two moments."""

    start: str = Field(description="date or time, for example 2026-03-01", max_length=40)
    end: str = Field(description="date or time", max_length=40)


class ShiftArguments(BaseModel):
    """A moment and how far to move it."""

    when: str = Field(description="date or time, for example 2026-03-01T14:30", max_length=40)
    days: int = Field(default=0, ge=-1_000_000, le=1_000_000, description="days to add; negative goes back")
    hours: int = Field(default=0, ge=-1_000_000, le=1_000_000, description="hours to add")
    minutes: int = Field(default=0, ge=-1_000_000, le=1_000_000, description="minutes to add")


def unit_tool(name: str = "convert_units") -> BaseTool:
    """A tool ``convert_units(value, source, target)``."""

    def convert(value: float, source: str, target: str) -> str:
        return f"{value:.12g} {source} = {convert_units(value, source, target):.12g} {target}"

    return make_tool(
        convert, name=name, description="Convert a number from one unit to another.", arguments=UnitArguments
    )


def time_tools(clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> list[BaseTool]:
    """``current_time``, ``convert_time``, ``time_between`` and ``shift_time``.

    Args:
        clock: the present moment, with a time zone; give another one in tests.
    """

    def current_time(timezone: str = "UTC") -> str:
        return _show(clock().astimezone(_zone(timezone)))

    def convert_time(when: str, source: str, target: str) -> str:
        moment = _moment(when)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=_zone(source))
        try:
            return _show(moment.astimezone(_zone(target)))
        except OverflowError:
            raise LimitError(f"{when} is outside the calendar there") from None

    def time_between(start: str, end: str) -> str:
        first, second = _moment(start), _moment(end)
        if (first.tzinfo is None) != (second.tzinfo is None):
            raise ToolInputError("give both moments with a time zone, or both without")
        gap = second - first
        sign, gap = ("-", -gap) if gap < timedelta() else ("", gap)
        hours, rest = divmod(gap.seconds, 3600)
        return f"{sign}{gap.days} days, {hours} hours, {rest // 60} minutes, {rest % 60} seconds"

    def shift_time(when: str, days: int = 0, hours: int = 0, minutes: int = 0) -> str:
        try:
            return _show(_moment(when) + timedelta(days=days, hours=hours, minutes=minutes))
        except OverflowError:
            raise LimitError("the result is outside the calendar (years 1 to 9999)") from None

    return [
        make_tool(
            current_time,
            name="current_time",
            description="The present date, time and weekday in a time zone.",
            arguments=ZoneArguments,
        ),
        make_tool(
            convert_time,
            name="convert_time",
            description="What time it is in another time zone.",
            arguments=ConvertTimeArguments,
        ),
        make_tool(
            time_between,
            name="time_between",
            description="The time from one date or moment to another.",
            arguments=BetweenArguments,
        ),
        make_tool(
            shift_time,
            name="shift_time",
            description="Add days, hours or minutes to a date or time.",
            arguments=ShiftArguments,
        ),
    ]

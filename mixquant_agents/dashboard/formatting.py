"""Numbers and instants as a reader wants them. Unknown is an en dash, never 0."""

from __future__ import annotations

import json
import math
from datetime import datetime

__all__ = ["UNKNOWN", "clock", "count", "duration", "interval", "moment", "pretty", "rate", "ratio", "score", "share"]

UNKNOWN = "–"
_THIN = "\u202f"


def duration(seconds: float | None) -> str:
    """Three significant digits with a unit: ``84 µs``, ``12.3 ms``, ``1.25 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds <= 0:
        return f"0{_THIN}s"
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f}{_THIN}µs"
    if seconds < 0.9995:
        return f"{_digits(seconds * 1e3)}{_THIN}ms"
    if seconds < 99.95:
        return f"{_digits(seconds)}{_THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{_THIN}min {whole % 60}{_THIN}s"
    if whole < 172_800:
        return f"{whole // 3600}{_THIN}h {whole % 3600 // 60}{_THIN}min"
    return f"{whole // 86_400}{_THIN}d {whole % 86_400 // 3600}{_THIN}h"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def count(value: float | None) -> str:
    """``1 234``, ``56.7 k``, ``8.9 M``."""
    if value is None:
        return UNKNOWN
    if value < 10_000:
        return f"{value:,.0f}".replace(",", _THIN)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{_digits(value / size)}{_THIN}{letter}"
    return f"{value:.0f}"  # pragma: no cover - 10 000 and above has a letter


def rate(value: float | None) -> str:
    """Something per second or minute, with three significant digits."""
    if value is None:
        return UNKNOWN
    return count(value) if value >= 999.5 else _digits(value)


def share(value: float | None) -> str:
    """A share as a percentage; never rounded up to 100 % or down to 0 %."""
    if value is None:
        return UNKNOWN
    percent = value * 100
    if percent in (0, 100):
        return f"{percent:.0f}{_THIN}%"
    percent = min(99.9, max(0.1, percent))
    return f"{percent:.1f}{_THIN}%"


def interval(seconds: int) -> str:
    """The length of an interval in words: ``minute``, ``6 hours``, ``day``."""
    for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds % size == 0:
            return name if seconds == size else f"{seconds // size} {name}s"
    return "second" if seconds == 1 else f"{seconds} seconds"


def ratio(value: float | None) -> str:
    """``1.43×``."""
    return UNKNOWN if value is None else f"{value:.2f}×"


def score(value: float | None) -> str:
    """Two digits behind the point: ``0.67``."""
    return UNKNOWN if value is None else f"{value:.2f}"


def pretty(text: str) -> str:
    """JSON on lines of its own; any other text as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict | list) else text


def _local(instant: str) -> datetime:
    moment = datetime.fromisoformat(instant)
    try:
        return moment.astimezone()
    except (OverflowError, ValueError, OSError):  # at the calendar's ends
        return moment


def clock(instant: str) -> str:
    """The local time of day, to the second."""
    return _local(instant).strftime("%H:%M:%S")


def moment(instant: str) -> str:
    """Local date and time, to the second."""
    return _local(instant).strftime("%Y-%m-%d %H:%M:%S")

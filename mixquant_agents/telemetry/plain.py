"""Values of others as text and as JSON: what tools and models give may be anything, and telemetry never fails on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["json_of", "text_of"]

DEEPEST = 100
"""Levels of nesting that are written out where JSON's own writer gives up."""
LONGEST_BITS = 10_000
"""Longer whole numbers have no decimal text: Python refuses one of more than 4,300 digits."""


def text_of(value: Any) -> str:
    """``str(value)``; where that cannot be had, what kind of value it is and why."""
    try:
        return str(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the value's own ``__str__`` raises
        return f"({type(value).__name__} whose text cannot be had: {type(error).__name__})"


def json_of(value: Any) -> str:
    """``value`` as JSON. What JSON cannot say (sets, keys that are no names, circles, ages of nesting, objects whose
    ``__str__`` raises) is said in words in its place, so that what stands around it is kept."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException:
        return json.dumps(_plain(value, ()), ensure_ascii=False)


def _plain(value: Any, around: tuple[int, ...]) -> Any:
    """``value`` of plain dicts, lists, strings and numbers. ``around``: ids of the containers that it is in."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, Mapping | list | tuple):
        return _plain_container(value, around)
    if type(value) is int and value.bit_length() <= LONGEST_BITS:
        return value
    return text_of(value)


def _plain_container(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], around: tuple[int, ...]) -> Any:
    if id(value) in around:
        return "(a circle)"
    if len(around) == DEEPEST:
        return f"(nested deeper than {DEEPEST} levels)"
    around = (*around, id(value))
    if isinstance(value, Mapping):
        return {text_of(key): _plain(inner, around) for key, inner in value.items()}
    return [_plain(inner, around) for inner in value]

"""Several schemas at once: one schema for "all of these", as far as there is one."""

from __future__ import annotations

import json
import math
from typing import Any

from mixquant_agents.engine.json_schema.keywords import CONSTRAINTS, LOWER_BOUNDS, UPPER_BOUNDS, Schema

__all__ = ["NotMergedError", "merge"]

MAX_ALTERNATIVES = 64
"""Alternatives of two ``anyOf`` that are written out as pairs."""


class NotMergedError(Exception):
    """Two schemas have no common one that a grammar can hold."""


def merge(a: Schema, b: Schema) -> Schema:
    """One schema for "both ``a`` and ``b``"; parts that meet inside become ``allOf`` again.

    Raises:
        NotMergedError: two keywords have no common form.
    """
    if a is False or b is False:
        return False
    if a is True:
        return b
    if b is True:
        return a
    assert isinstance(a, dict) and isinstance(b, dict)  # noqa: S101, PT018  narrows the types
    _check_closed(a, b)
    result: dict[str, Any] = dict(a)
    for key, value in b.items():
        if key not in result or result[key] == value:
            result[key] = value
        elif key not in CONSTRAINTS and key not in ("minContains", "maxContains"):
            continue  # a comment
        else:
            result[key] = _both(key, result[key], value)
    return result if result.get("type") != [] else False


def _both(key: str, first: Any, second: Any) -> Any:
    match key:
        case "type":
            return _common_types(first, second)
        case "properties" | "patternProperties":
            both = {name: {"allOf": [first[name], second[name]]} for name in first if name in second}
            return {**first, **second, **both}
        case "required":
            return list(dict.fromkeys((*first, *second)))
        case "enum":
            listed = [json.dumps(value, sort_keys=True) for value in second]
            return [value for value in first if json.dumps(value, sort_keys=True) in listed]
        case "items" | "additionalProperties" | "propertyNames":
            return {"allOf": [first, second]}
        case "not":
            return {"anyOf": [first, second]}
        case "dependentRequired":
            return {**first, **second} if not first.keys() & second.keys() else _unmerged(key)
        case "uniqueItems":
            return True
        case "anyOf" if len(first) * len(second) <= MAX_ALTERNATIVES:
            return [{"allOf": [left, right]} for left in first for right in second]
        case _ if key in LOWER_BOUNDS:
            return max(first, second)
        case _ if key in UPPER_BOUNDS:
            return min(first, second)
        case "multipleOf" if isinstance(first, int) and isinstance(second, int):
            return math.lcm(first, second)
        case _:
            return _unmerged(key)


def _unmerged(key: str) -> Any:
    raise NotMergedError(f"{key} stands in several parts")


def _check_closed(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Refuse where what one part says of further properties is about properties that the other names."""
    for first, second in ((a, b), (b, a)):
        if first.get("additionalProperties", True) is True:
            continue
        named = first.get("properties", {}).keys()
        if second.get("properties", {}).keys() - named or second.get("patternProperties"):
            raise NotMergedError("additionalProperties of one part is about properties of another")
    for first, second in ((a, b), (b, a)):
        if "prefixItems" in first and "items" in second:
            raise NotMergedError("prefixItems of one part meet items of another")


def _common_types(first: Any, second: Any) -> list[str]:
    names = [[kinds] if isinstance(kinds, str) else list(kinds) for kinds in (first, second)]
    common = []
    for kind in names[0]:
        if kind in names[1] or (kind == "integer" and "number" in names[1]):
            common.append(kind)
        elif kind == "number" and "integer" in names[1]:
            common.append("integer")
    return common

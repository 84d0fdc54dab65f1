"""BFCL's single-turn ground truths as calls a model could make.

A ground truth lists the allowed values of each parameter; ``""`` among them means that it may be left out. Java and
JavaScript parameters are source text, as the tasks ask for it and as the official checker reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["call_of"]

_LEFT_OUT = object()
_RECORDS = frozenset({"dict", "HashMap"})
_LISTS = frozenset({"Array", "ArrayList", "array"})


def call_of(values: Mapping[str, Sequence[Any]], properties: Mapping[str, Any], category: str) -> dict[str, Any]:
    """Arguments that satisfy one ground truth, the first allowed value of each.

    Args:
        values: parameter → allowed values.
        properties: the function's parameters, in BFCL's own types.
        category: of the task; it says which language the parameters are in.
    """
    arguments: dict[str, Any] = {}
    for name, options in values.items():
        if name not in properties and "" in options:
            continue
        description = properties.get(name, {})
        value = _first(options, description)
        if value is _LEFT_OUT:
            continue
        if category == "simple_java":
            value = _java(value, str(description.get("type")), (description.get("items") or {}).get("type"))
        elif category == "simple_javascript":
            value = _javascript(value, str(description.get("type")))
        arguments[name] = value
    return arguments


def _first(options: Sequence[Any], description: Mapping[str, Any]) -> Any:
    values = [option for option in options if option != ""]
    if not values:
        return "" if description.get("type") == "string" and list(options) == [""] else _LEFT_OUT
    value = values[0]
    if description.get("type") in _RECORDS and isinstance(value, dict):
        return _fields(value)
    if isinstance(value, list) and (description.get("items") or {}).get("type") in _RECORDS:
        return [_fields(item) if isinstance(item, dict) else item for item in value]
    return value


def _fields(truth: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {key: _first(options, {}) if isinstance(options, list) else options for key, options in truth.items()}
    return {key: value for key, value in arguments.items() if value is not _LEFT_OUT}


def _java(value: Any, kind: str, inner: str | None) -> str:
    """Java source of ``value``. The checker reads array elements without quotes, those of lists and maps with them."""
    if isinstance(value, list) and kind == "Array":
        return f"new {inner or 'Object'}[]{{{', '.join(_java(item, inner or 'any', None) for item in value)}}}"
    if isinstance(value, list):
        items = ", ".join(f'"{i}"' if isinstance(i, str) else _java(i, inner or "any", None) for i in value)
        return f"new ArrayList<>(Arrays.asList({items}))"
    if isinstance(value, dict):
        puts = [f'put("{k}", {_quoted(v)});' for k, v in value.items()]
        return f"new HashMap<String, Object>() {{{{ {' '.join(puts)} }}}}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value}{ {'float': 'f', 'long': 'L'}.get(kind, '') }"
    return str(value)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else _java(value, "any", None)


def _javascript(value: Any, kind: str, nested: bool = False) -> str:
    """JavaScript source of ``value``."""
    if isinstance(value, list):
        return f"[{', '.join(_javascript(item, 'any', nested=True) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"'{k}': {_javascript(v, 'any', nested=True)}" for k, v in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value}n" if kind == "Bigint" else str(value)
    return f'"{value}"' if nested else str(value)

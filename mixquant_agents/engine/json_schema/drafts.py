"""Schemas of drafts 4 to 7 in the words of draft 2020-12."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["modern"]


def modern(schema: Any) -> Any:
    """The same schema in the words of draft 2020-12, where it uses those of drafts 4 to 7."""
    if not isinstance(schema, Mapping):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
            value = {name: modern(part) for name, part in value.items()} if isinstance(value, Mapping) else value
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            value = [modern(part) for part in value] if isinstance(value, list | tuple) else value
        elif key in _SUBSCHEMAS:
            value = [modern(part) for part in value] if isinstance(value, list | tuple) else modern(value)
        elif isinstance(value, tuple):
            value = list(value)
        result[key] = value
    if isinstance(result.get("items"), list):
        result["prefixItems"] = result.pop("items")
        if "additionalItems" in result:
            result["items"] = result.pop("additionalItems")
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(result.get(exclusive), bool) and result.pop(exclusive) and bound in result:
            result[exclusive] = result.pop(bound)
    dependencies = result.pop("dependencies", None)
    if isinstance(dependencies, Mapping):
        for name, needed in dependencies.items():
            kind = "dependentRequired" if isinstance(needed, list | tuple) else "dependentSchemas"
            result[kind] = {**result.get(kind, {}), name: modern(needed)}
    return result


_SUBSCHEMAS = frozenset(
    {"items", "additionalItems", "additionalProperties", "propertyNames", "contains", "not", "if", "then", "else"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)

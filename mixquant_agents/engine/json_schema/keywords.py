"""Keywords of JSON Schema (draft 2020-12), by what they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["CONSTRAINTS", "FORMATS", "LOWER_BOUNDS", "UPPER_BOUNDS", "Schema", "constraints", "types_of"]

Schema = dict[str, Any] | bool

FORMATS = frozenset(
    {"email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference"}
    | {"uri-template", "json-pointer", "relative-json-pointer"}
)
"""Formats that xgrammar has a grammar for."""

_TYPES = ("null", "boolean", "object", "array", "number", "string")
_KEYWORDS_OF: dict[str, tuple[str, ...]] = {
    kind: tuple(keywords.split())
    for kind, keywords in {
        "object": "properties patternProperties additionalProperties propertyNames required minProperties "
        "maxProperties dependentRequired dependentSchemas unevaluatedProperties",
        "array": "items prefixItems minItems maxItems uniqueItems contains minContains maxContains unevaluatedItems",
        "string": "pattern format minLength maxLength",
        "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
    }.items()
}
_ANY_TYPE = ("type", "enum", "const", "not", "if", "then", "else", "anyOf", "oneOf", "allOf", "$ref")
CONSTRAINTS = frozenset((*_ANY_TYPE, *(keyword for keywords in _KEYWORDS_OF.values() for keyword in keywords)))
"""Keywords that constrain a value. Every other one is a comment, or holds definitions."""

LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains")
UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties", "maxContains")


def constraints(schema: Any, *besides: str) -> set[str]:
    """Keywords of a schema that constrain a value, but for some."""
    return (
        {key for key in schema if key in CONSTRAINTS and key not in besides} if isinstance(schema, Mapping) else set()
    )


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """Types a schema allows: as it says, or those that its keywords are about; none where it says nothing."""
    declared = schema.get("type")
    if declared is not None:
        kinds = [declared] if isinstance(declared, str) else list(dict.fromkeys(declared))
        return [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]
    return [kind for kind in _TYPES if any(keyword in schema for keyword in _KEYWORDS_OF.get(kind, ()))]

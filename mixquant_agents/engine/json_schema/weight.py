"""What a grammar for a schema costs, roughly."""

from __future__ import annotations

from typing import Any

from mixquant_agents.engine.json_schema.patterns import pattern_weight

__all__ = ["weight"]


def weight(schema: Any, factor: int = 1) -> int:
    """States of a grammar for a rewritten schema, roughly: bounded repetitions multiply what they repeat."""
    if not isinstance(schema, dict):
        return factor
    total: int = factor * (1 + len(schema.get("enum", ())))
    if "pattern" in schema:
        total += factor * pattern_weight(schema["pattern"])
    total += factor * max(schema.get("maxLength", 0), schema.get("minLength", 0))
    repeats = max(schema.get("maxItems", 0), schema.get("minItems", 0), 1)
    optional = len(schema.get("properties", ())) - len(schema.get("required", ()))
    total += factor * max(optional, 0) ** 2 // 2
    for part in schema.get("properties", {}).values():
        total += weight(part, factor)
    for part in (
        *schema.get("anyOf", ()),
        *schema.get("prefixItems", ()),
        *schema.get("patternProperties", {}).values(),
    ):
        total += weight(part, factor)
    for keyword, times in (("items", repeats), ("additionalProperties", 1), ("propertyNames", 1)):
        if keyword in schema:
            total += weight(schema[keyword], factor * times)
    return total

"""BFCL's function descriptions as OpenAI tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["tool_name", "tool_of"]


def tool_name(name: str) -> str:
    """A name that tool-calling models may use: BFCL's checkers, too, turn ``.`` into ``_``."""
    return name.replace(".", "_")


def tool_of(description: Mapping[str, Any], json_types: Mapping[str, str]) -> dict[str, Any]:
    """One OpenAI function tool."""
    return {
        "type": "function",
        "function": {
            "name": tool_name(description["name"]),
            "description": description["description"],
            "parameters": _schema(description["parameters"], json_types),
        },
    }


def _schema(node: Mapping[str, Any], json_types: Mapping[str, str]) -> dict[str, Any]:
    """JSON schema of one parameter: ``dict``, ``float``, ``tuple``, ``any`` and Java's names become JSON's."""
    schema = {
        key: value for key, value in node.items() if key not in ("type", "properties", "items", "optional", "required")
    }
    schema["type"] = json_types.get(str(node.get("type", "string")), "string")
    if node.get("type") == "float":
        schema["description"] = f"{node.get('description', '')} This is a float type value."
    if isinstance(node.get("properties"), Mapping):
        schema["properties"] = {name: _schema(inner, json_types) for name, inner in node["properties"].items()}
    if isinstance(node.get("required"), list):
        schema["required"] = node["required"]
    if schema["type"] == "array":
        items = node.get("items")
        schema["items"] = _schema(items, json_types) if isinstance(items, Mapping) and items else {}
    return schema

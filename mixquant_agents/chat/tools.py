"""Tools and how they may be chosen: LangChain's ways of saying it → the engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from mixquant_agents.engine.base import JsonObject, NamedTool, ToolChoice
from mixquant_agents.errors import RequestError
from mixquant_agents.unicode import well_formed_json

__all__ = ["ToolLike", "engine_choice", "engine_tools", "tool_name"]

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

_WORDS: dict[str, ToolChoice] = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


def engine_tools(tools: Sequence[ToolLike], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """OpenAI function tools from pydantic models, TypedDicts, JSON schemas, functions, ``BaseTool`` or OpenAI tools.

    Raises:
        RequestError: something is no tool.
    """
    if isinstance(tools, str | Mapping) or not isinstance(tools, Iterable):
        raise RequestError(f"tools={tools!r} is no list of tools")
    return [_engine_tool(tool, strict) for tool in tools]


def _engine_tool(tool: ToolLike, strict: bool | None) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        _refuse_provider_tool(tool)
    try:
        one = convert_to_openai_tool(dict(tool) if isinstance(tool, Mapping) else tool, strict=strict)
    except Exception as error:  # LangChain and pydantic have many ways to refuse
        why = " ".join(str(error).split())
        raise RequestError(
            f"{tool!r} is no tool ({why}); give a pydantic model, TypedDict, JSON schema, function or BaseTool"
        ) from error
    function = one.get("function")
    if one.get("type") != "function" or not isinstance(function, Mapping):
        raise RequestError(f"a tool of type {one.get('type')!r} is not supported; only function tools are")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise RequestError(f"a tool is named {name!r}; give each a name")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(f"the parameters of tool {name!r} are {parameters!r}, not a JSON schema object")
    clean: dict[str, Any] = well_formed_json(one)
    return clean


def _refuse_provider_tool(tool: Mapping[str, Any]) -> None:
    """A tool that its provider runs (web search, a computer) has a type of its own and no schema: it would be rendered
    as a function without parameters, which the model may call and nobody runs."""
    kind = tool.get("type")
    has_schema = any(name in tool for name in ("function", "parameters", "input_schema", "inputSchema"))
    if isinstance(kind, str) and kind not in (*_JSON_TYPES, "function") and not has_schema:
        raise RequestError(
            f"the tool {tool.get('name', kind)!r} of type {kind!r} is run by its provider, and there is none here; "
            "give a function tool that does it, with a schema of its parameters"
        )


_JSON_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def tool_name(tool: JsonObject) -> str:
    """The name of an OpenAI function tool."""
    return str(tool["function"]["name"])


def _word(choice: Mapping[str, Any]) -> ToolChoice | None:
    kind = choice.get("type")
    named = "function" in choice or "name" in choice
    return _WORDS.get(kind) if isinstance(kind, str) and not named else None


def engine_choice(choice: object, tools: Sequence[JsonObject]) -> ToolChoice:
    """``None``, ``"auto"``, ``"none"``, ``"any"``, ``"required"``, a bool, a tool's name, or a dict: OpenAI's
    ``{"type": "function", "function": {"name": …}}``, Anthropic's ``{"type": "tool", "name": …}``, ``{"type": "any"}``.

    Raises:
        RequestError: no such tool, or a call is forced without tools.
    """
    names = [tool_name(tool) for tool in tools]
    found: ToolChoice
    if choice is None:
        found = "auto"
    elif isinstance(choice, bool):
        found = "required" if choice else "none"
    elif isinstance(choice, NamedTool):
        found = choice
    elif isinstance(choice, str):
        found = NamedTool(choice) if choice in names or choice not in _WORDS else _WORDS[choice]
    elif (
        isinstance(choice, Mapping) and choice.keys().isdisjoint(("function", "name")) and choice.get("type") in _WORDS
    ):
        found = _WORDS[choice["type"]]
    elif isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        named = inner.get("name") if isinstance(inner, Mapping) else inner
        if not isinstance(named, str):
            raise RequestError(f'tool_choice={choice!r} names no tool; write {{"type": "function", "function": …}}')
        found = NamedTool(named)
    else:
        raise RequestError(f"tool_choice={choice!r} is not understood; use auto, none, any, required or a tool's name")
    if isinstance(found, NamedTool) and found.name not in names:
        raise RequestError(
            f"tool_choice={found.name!r} is not among the tools ({', '.join(names) or 'there are none'})"
        )
    if found == "required" and not names:
        raise RequestError("tool_choice='required' without tools; bind tools first")
    return found

"""Tools and how they may be chosen: LangChain's ways of saying it → the engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from mixquant_agents.chat.plain_json import plain_json, shown
from mixquant_agents.engine.base import JsonObject, NamedTool, ToolChoice
from mixquant_agents.errors import RequestError

__all__ = ["ToolLike", "engine_choice", "engine_tools", "tool_name"]

ToolLike = Mapping[str, Any] | type | Callable[..., Any] | BaseTool

_WORDS: dict[str, ToolChoice] = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


def engine_tools(tools: Sequence[ToolLike], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """OpenAI function tools from pydantic models, TypedDicts, JSON schemas, functions, ``BaseTool`` or OpenAI tools.

    Raises:
        RequestError: something is no tool.
    """
    if isinstance(tools, str | Mapping | BaseTool) or not isinstance(tools, Iterable):  # one tool iterates over fields
        raise RequestError(f"tools={shown(tools)} is no list of tools")
    return [_engine_tool(tool, strict) for tool in tools]


def _engine_tool(tool: ToolLike, strict: bool | None) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        _refuse_provider_tool(tool)
        tool = _nested_function(tool)
    try:
        converted = convert_to_openai_tool(tool, strict=strict)
    except Exception as error:  # LangChain and pydantic have many ways to refuse
        why = " ".join(str(error).split())
        raise RequestError(
            f"{shown(tool)} is no tool ({why}); give a pydantic model, TypedDict, JSON schema, function or BaseTool"
        ) from error
    function = converted.get("function")
    if converted.get("type") != "function" or not isinstance(function, Mapping):
        raise RequestError(f"a tool of type {converted.get('type')!r} is not supported; only function tools are")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise RequestError(f"a tool is named {name!r}; give each a name")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise RequestError(f"the parameters of tool {name!r} are {shown(parameters)}, not a JSON schema object")
    clean: dict[str, Any] = plain_json(converted, f"the tool {name!r}")
    return clean


def _nested_function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's responses form of a function, ``{"type": "function", "name": …}``, in the form of chat completions."""
    if tool.get("type") != "function" or "function" in tool:
        return dict(tool)
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _refuse_provider_tool(tool: Mapping[str, Any]) -> None:
    """A tool that its provider runs (web search, a computer) has a type of its own and no schema: it would be rendered
    as a function without parameters, which the model may call and nobody runs."""
    kind = tool.get("type")
    has_schema = any(name in tool for name in ("function", "parameters", "input_schema", "inputSchema"))
    if isinstance(kind, str) and kind not in (*_JSON_TYPES, "function") and not has_schema:
        raise RequestError(
            f"the tool {tool.get('name', kind)!r} of type {kind!r} is run by its provider, and this model has none; "
            "give a function tool that does it, with a schema of its parameters"
        )


_JSON_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def tool_name(tool: JsonObject) -> str:
    """The name of an OpenAI function tool."""
    return str(tool["function"]["name"])


def engine_choice(choice: object, tools: Sequence[JsonObject]) -> ToolChoice:
    """``None``, ``"auto"``, ``"none"``, ``"any"``, ``"required"``, a bool, a tool's name, or a dict: OpenAI's
    ``{"type": "function", "function": {"name": …}}``, Anthropic's ``{"type": "tool", "name": …}``, ``{"type": "any"}``.

    Raises:
        RequestError: no such tool, or a call is forced without tools.
    """
    names = [tool_name(tool) for tool in tools]
    tool_choice = _chosen(choice, names)
    if isinstance(tool_choice, NamedTool) and tool_choice.name not in names:
        raise RequestError(
            f"tool_choice={tool_choice.name!r} is not among the tools ({', '.join(names) or 'there are none'})"
        )
    if tool_choice == "required" and not names:
        raise RequestError("tool_choice='required' without tools; bind tools first")
    return tool_choice


def _chosen(choice: object, names: Sequence[str]) -> ToolChoice:
    if choice is None:
        return "auto"
    if isinstance(choice, bool):
        return "required" if choice else "none"
    if isinstance(choice, NamedTool):
        return choice
    if isinstance(choice, str):
        return NamedTool(choice) if choice in names or choice not in _WORDS else _WORDS[choice]
    if isinstance(choice, Mapping):
        return _chosen_by_dict(choice)
    raise RequestError(f"tool_choice={choice!r} is not understood; use auto, none, any, required or a tool's name")


def _chosen_by_dict(choice: Mapping[Any, Any]) -> ToolChoice:
    if unknown := sorted(map(str, choice.keys() - {"type", "name", "function"})):
        raise RequestError(
            f"tool_choice={choice!r} has {', '.join(map(repr, unknown))}, which are no part of a choice; give settings "
            "of the call as arguments, such as parallel_tool_calls=False"
        )
    kind, function = choice.get("type"), choice.get("function", choice)
    if function is choice and "name" not in choice and isinstance(kind, str) and kind in _WORDS:
        return _WORDS[kind]
    name = function.get("name") if isinstance(function, Mapping) else function
    if not isinstance(name, str):
        raise RequestError(f'tool_choice={choice!r} names no tool; write {{"type": "function", "function": …}}')
    return NamedTool(name)

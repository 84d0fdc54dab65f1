"""What may be given as a schema → its JSON schema, its form as a tool, and what makes an object of the answer."""

from __future__ import annotations

import dataclasses
import enum
import functools
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typing_extensions
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, TypeAdapter

from mixquant_agents.chat.plain_json import plain_json, shown
from mixquant_agents.engine.json_schema import check_schema, modern, violation
from mixquant_agents.errors import GrammarError

__all__ = ["OutputSchema", "output_schema"]

WRAPPED = "value"
"""Parameter of a tool for a schema that is no object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """One schema, in the forms that the ways of asking need.

    Attributes:
        name: of the schema and of its tool.
        schema: JSON schema of the answer.
        tool: OpenAI function tool whose arguments are the answer.
        wrapped: the answer is no object, so the tool has it as its parameter ``value``.
        grows: what the caller gets is plain JSON, so half of it can be given while it grows.
        read: value of the answer's JSON → what the caller gets. Raises ``ValueError`` where it breaks the schema.
    """

    name: str
    schema: dict[str, Any]
    tool: dict[str, Any]
    wrapped: bool = False
    grows: bool = True
    read: Callable[[Any], Any]


def output_schema(schema: Any, strict: bool | None) -> OutputSchema:
    """The forms of a pydantic class, ``TypedDict``, ``Enum``, any other type that pydantic reads, a function, a JSON
    schema, or an OpenAI function tool.

    Raises:
        GrammarError: it is none of them.
    """
    try:
        return _output_schema(schema, strict)
    except GrammarError:
        raise
    except Exception as error:  # LangChain and pydantic have many ways to refuse
        why = " ".join(str(error).split())
        raise GrammarError(
            f"{shown(schema)} is no schema ({why}); give a pydantic model, TypedDict, Enum, or a JSON schema with a "
            "title"
        ) from error


def _output_schema(schema: Any, strict: bool | None) -> OutputSchema:
    if isinstance(schema, Mapping):
        output = _of_mapping(plain_json(schema, "the schema"), strict)
        check_schema(modern(output.schema))
        return output
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _of_model(schema, strict)
    if _is_function(schema):
        tool = convert_to_openai_tool(schema, strict=strict)
        parameters = tool["function"]["parameters"]
        return OutputSchema(
            name=tool["function"]["name"], schema=parameters, tool=tool, read=functools.partial(_checked, parameters)
        )
    return _of_type(schema, strict)


def _of_mapping(schema: Mapping[str, Any], strict: bool | None) -> OutputSchema:
    """A JSON schema needs no title: it is no function that would need a name. It is left as it is unless ``strict``
    asks for another: LangChain writes references out, and of one that leads into itself nothing would be left.
    """
    plain = dict(schema)
    if _SCHEMA_KEYS & plain.keys() and not _FUNCTION_KEYS & plain.keys():
        name = str(plain.get("title") or "answer")
        if strict and "properties" in plain:  # of an array, an enum, a union LangChain keeps the title alone
            plain = convert_to_json_schema({**plain, "title": name}, strict=True)
        return _named(name, plain, strict, functools.partial(_checked, plain))
    tool = convert_to_openai_tool(plain, strict=strict)
    parameters = tool["function"].get("parameters") or {"type": "object", "properties": {}}
    return OutputSchema(
        name=tool["function"]["name"], schema=parameters, tool=tool, read=functools.partial(_checked, parameters)
    )


_SCHEMA_KEYS = {"type", "properties", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
_FUNCTION_KEYS = {"function", "name", "toolSpec"}
"""Keys by which a dict is a function with a schema inside, not a JSON schema."""


def _of_model(schema: type, strict: bool | None) -> OutputSchema:
    """A pydantic class judges its answers itself, and drops the doubles of a set: so ``uniqueItems`` is left out."""
    tool = convert_to_openai_tool(schema, strict=strict)
    function = tool["function"]
    if strict or not issubclass(schema, BaseModel):
        plain = convert_to_json_schema(schema, strict=strict)
    else:
        plain = schema.model_json_schema()
    tool = {**tool, "function": {**function, "parameters": _without_unique_items(function["parameters"])}}
    return OutputSchema(
        name=function["name"],
        schema=_without_unique_items(plain),
        tool=tool,
        grows=False,
        read=functools.partial(_model, schema),
    )


def _of_type(schema: Any, strict: bool | None) -> OutputSchema:
    """A ``TypedDict`` is answered by a plain dict, as LangChain does it; any other type by its value."""
    typed_dict = typing_extensions.is_typeddict(schema)
    named = typed_dict or isinstance(schema, enum.EnumMeta) or dataclasses.is_dataclass(schema)
    if not named and typing.get_origin(schema) is None:
        raise TypeError("it has no fields and lists no values")
    adapter: TypeAdapter[Any] = TypeAdapter(_portable(schema))
    plain = _without_unique_items(adapter.json_schema())
    if typed_dict:
        _describe(schema, plain)
    name = str(schema.__name__ if isinstance(schema, type) else plain.get("title", "answer"))
    if typed_dict:
        if strict and "properties" in plain:
            plain = convert_to_json_schema({**plain, "title": name}, strict=True)
        return _named(name, plain, strict, functools.partial(_checked, plain))
    return _named(name, plain, strict, adapter.validate_python, grows=False)


def _named(
    name: str, schema: dict[str, Any], strict: bool | None, read: Callable[[Any], Any], *, grows: bool = True
) -> OutputSchema:
    wrapped = schema.get("type") != "object"
    parameters: dict[str, Any] = {key: value for key, value in schema.items() if key not in ("title", "description")}
    if wrapped:
        definitions = parameters.pop("$defs", None)
        if _mentions_root(parameters):
            raise GrammarError(f"{name!r} refers to itself and is no object; give an object with it as a property")
        parameters = {"type": "object", "properties": {WRAPPED: parameters}, "required": [WRAPPED]}
        if definitions:
            parameters["$defs"] = definitions
    function: dict[str, Any] = {
        "name": name,
        "description": str(schema.get("description", "")),
        "parameters": parameters,
    }
    if strict is not None:
        function["strict"] = strict
    tool = {"type": "function", "function": function}
    return OutputSchema(name=name, schema=schema, tool=tool, wrapped=wrapped, grows=grows, read=read)


def _checked(schema: Mapping[str, Any], value: Any) -> Any:
    problem = violation(schema, value)
    if problem is not None:
        raise ValueError(problem)
    return value


def _model(schema: Any, value: Any) -> Any:
    return schema.model_validate(value) if issubclass(schema, BaseModel) else schema.parse_obj(value)


def _is_function(schema: Any) -> bool:
    return callable(schema) and not isinstance(schema, type) and typing.get_origin(schema) is None


def _without_unique_items(node: Any) -> Any:
    """``node`` without the keyword where it speaks of an array (a property may have its name)."""
    if isinstance(node, list):
        return [_without_unique_items(part) for part in node]
    if not isinstance(node, dict):
        return node
    array = node.get("type") == "array"
    return {key: _without_unique_items(value) for key, value in node.items() if not (array and key == "uniqueItems")}


def _mentions_root(node: Any) -> bool:
    if isinstance(node, dict):
        return node.get("$ref") == "#" or any(map(_mentions_root, node.values()))
    return isinstance(node, list) and any(map(_mentions_root, node))


def _portable(schema: Any, above: tuple[Any, ...] = ()) -> Any:
    """``schema`` with ``typing``'s typed dicts made those of ``typing_extensions``, which alone pydantic reads before
    Python 3.12, and with strings of ``Annotated`` fields gone (LangChain's way to describe them)."""
    if typing_extensions.is_typeddict(schema):
        if schema in above:
            raise GrammarError(f"the TypedDict {schema.__name__!r} refers to itself; give a pydantic model")
        if sys.version_info >= (3, 12) or type(schema).__module__ != "typing":
            return schema
        hints = typing_extensions.get_type_hints(schema, include_extras=True)
        fields = {}
        for name, hint in hints.items():
            portable = _portable(hint, (*above, schema))
            marked = typing.get_origin(hint) in _MARKS
            optional = name in schema.__optional_keys__ and not marked
            fields[name] = typing_extensions.NotRequired[portable] if optional else portable
        make: Any = typing_extensions.TypedDict  # a type checker wants its fields written out
        made = make(schema.__name__, fields)
        made.__doc__ = schema.__doc__
        return made
    origin, arguments = typing.get_origin(schema), typing.get_args(schema)
    if not arguments or origin is typing.Literal or isinstance(schema, enum.EnumMeta):
        return schema
    if origin is typing.Annotated:
        return typing.Annotated[(_portable(arguments[0], above), *schema.__metadata__)]
    parts = [_portable(argument, above) if not isinstance(argument, list) else argument for argument in arguments]
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, parts)
    if origin in _MARKS:
        return origin[parts[0]]
    return origin[tuple(parts)]


_MARKS: tuple[Any, ...] = (typing_extensions.Required, typing_extensions.NotRequired)


def _describe(schema: Any, plain: dict[str, Any]) -> None:
    """Take over LangChain's descriptions: ``Annotated[str, ..., "what it is"]``."""
    plain.pop("title", None)
    for name, hint in typing_extensions.get_type_hints(schema, include_extras=True).items():
        while typing.get_origin(hint) in _MARKS:
            hint = typing.get_args(hint)[0]
        texts = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, str)]
        if texts and name in plain.get("properties", {}):
            plain["properties"][name]["description"] = texts[-1]

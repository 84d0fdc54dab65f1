"""``with_structured_output``: by grammar (the answer cannot be anything else), by a forced tool call, or JSON mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from mixquant_agents.errors import GrammarError

__all__ = ["Method", "structured"]

Method = Literal["json_schema", "function_calling", "json_mode"]


def structured(
    bind: Callable[..., Runnable[LanguageModelInput, Any]],
    bind_tools: Callable[..., Runnable[LanguageModelInput, Any]],
    schema: Any,
    *,
    method: Method,
    include_raw: bool,
    strict: bool | None,
) -> Runnable[LanguageModelInput, Any]:
    """The chain ``model | parser`` for ``schema``; ``bind`` and ``bind_tools`` are the model's.

    Raises:
        GrammarError: the method is unknown, or ``schema`` is none.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        raise GrammarError(f"method={method!r} is unknown; use 'json_schema', 'function_calling' or 'json_mode'")
    if schema is None and method != "json_mode":
        raise GrammarError(f"method={method!r} needs a schema; give one, or use method='json_mode'")
    traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    parser: Any
    if method == "function_calling":
        name = _as_tool(schema)["function"]["name"]
        llm = bind_tools(
            [schema], tool_choice=name, strict=strict, parallel_tool_calls=False, ls_structured_output_format=traced
        )
        if is_model:
            parser = _WholePydanticCall(tools=[schema], first_tool_only=True)
        else:
            parser = _WholeJsonCall(key_name=name, first_tool_only=True)
    else:
        parser = _WholePydantic(pydantic_object=schema) if is_model else _WholeJson()
        wanted: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            wanted = {"type": "json_schema", "json_schema": _named_schema(schema, strict)}
        elif schema is not None:
            wanted["schema"] = _named_schema(schema, strict)["schema"]
        llm = bind(response_format=wanted, ls_structured_output_format=traced if schema is not None else None)
    chain: Runnable[LanguageModelInput, Any]
    if not include_raw:
        chain = llm | parser
        return chain
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    chain = RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")
    return chain


def _named_schema(schema: Any, strict: bool | None) -> dict[str, Any]:
    """``{"name", "schema"}``. A JSON schema needs no title here: it is no function that would need a name.

    A schema is left as it is unless ``strict`` asks for another: LangChain writes references out, and where one leads
    into itself (a tree) nothing of it would be left.
    """
    if isinstance(schema, Mapping) and _SCHEMA_KEYS & schema.keys() and not _FUNCTION_KEYS & schema.keys():
        name = str(schema.get("title") or "answer")
        if not strict or "properties" not in schema:  # of an array, an enum, a union LangChain keeps the title alone
            return {"name": name, "schema": dict(schema)}
        schema = {**schema, "title": name}
    name = _as_tool(schema)["function"]["name"]
    if not strict and isinstance(schema, type) and issubclass(schema, BaseModel):
        return {"name": name, "schema": schema.model_json_schema()}
    return {"name": name, "schema": convert_to_json_schema(schema, strict=strict)}


_SCHEMA_KEYS = {"type", "properties", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}
_FUNCTION_KEYS = {"function", "name", "toolSpec"}
"""Keys by which a dict is a function with a schema inside, not a JSON schema."""


def _as_tool(schema: Any) -> dict[str, Any]:
    try:
        return convert_to_openai_tool(schema)
    except Exception as error:  # LangChain and pydantic have many ways to refuse
        why = " ".join(str(error).split())
        raise GrammarError(
            f"{schema!r} is no schema ({why}); give a pydantic model, a TypedDict, or a JSON schema with a title"
        ) from error


class _Whole(BaseOutputParser[Any]):
    """LangChain repairs half a JSON object, and takes half a call for none; an answer that was cut off must not pass
    for a whole one."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message = result[0].message if isinstance(result[0], ChatGeneration) else None
        if not partial and isinstance(message, AIMessage) and not message.tool_calls:
            why = _CUT_OFF.get(message.response_metadata.get("finish_reason", ""))
            if why is not None:
                raise OutputParserException(f"the answer {why}", llm_output=result[0].text)
        return super().parse_result(result, partial=partial)


_CUT_OFF = {
    "length": "was cut off before its JSON was complete; raise max_tokens",
    "abort": "was aborted before its JSON was complete",
}


class _WholeJson(_Whole, JsonOutputParser):
    """JSON as a dict."""


class _WholePydantic(_Whole, PydanticOutputParser[Any]):
    """JSON as an instance of a pydantic class."""


class _WholeJsonCall(_Whole, JsonOutputKeyToolsParser):
    """The arguments of a call as a dict."""


class _WholePydanticCall(_Whole, PydanticToolsParser):
    """The arguments of a call as an instance of a pydantic class."""

"""``with_structured_output``: by grammar (the answer cannot be anything else), by a forced tool call, or JSON mode.

Whatever way, the finished answer is checked: it must be complete JSON, and satisfy the whole schema, also the parts
that no grammar holds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser, JsonOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import SkipValidation

from mixquant_agents.chat.messages import UNPARSED
from mixquant_agents.chat.output_schema import WRAPPED, OutputSchema, output_schema
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
    output = output_schema(schema, strict) if schema is not None else None
    traced = None
    if output is not None:
        traced = {"kwargs": {"method": method, "strict": strict}, "schema": _traced_schema(schema, output)}
    parser: Runnable[Any, Any]
    if method == "function_calling" and output is not None:
        llm = bind_tools(
            [output.tool], tool_choice=output.name, parallel_tool_calls=False, ls_structured_output_format=traced
        )
        parser = _Call(key_name=output.name, first_tool_only=True, output=output)
    else:
        response_format: dict[str, Any] = {"type": "json_object"}
        if output is not None:
            response_format["checked"] = True
            if method == "json_schema":
                response_format |= {"type": "json_schema"}
                response_format["json_schema"] = {"name": output.name, "schema": output.schema}
            else:
                response_format["schema"] = output.schema
        llm = bind(response_format=response_format, ls_structured_output_format=traced)
        parser = _Answer(output=output)
    chain: Runnable[LanguageModelInput, Any]
    if not include_raw:
        chain = llm | parser
        return chain
    parsed = RunnablePassthrough.assign(parsed=operator.itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    chain = RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")
    return chain


def _traced_schema(schema: Any, output: OutputSchema) -> dict[str, Any]:
    """The schema in traces: as LangChain writes it, whose suites compare it; ours where it cannot read the type.
    LangChain converts the result again with every call, so it must be able to."""
    for candidate in (schema, {"title": output.name, **output.schema}):
        with contextlib.suppress(Exception):  # LangChain and pydantic have many ways to refuse; a list of types is one
            traced = convert_to_json_schema(candidate)
            convert_to_json_schema(traced)
            return traced
    return {"title": output.name, **output.tool["function"]["parameters"]}


class _CheckedAtEnd(BaseCumulativeTransformOutputParser[Any]):
    """Streams JSON as it grows (LangChain repairs half an object), and checks it when it is whole."""

    output: SkipValidation[OutputSchema | None] = None

    def _transform(self, input: Iterator[str | BaseMessage]) -> Iterator[Any]:  # noqa: A002  LangChain's name
        chunks: list[str | BaseMessage] = []
        last: Any = _NOTHING

        def kept() -> Iterator[str | BaseMessage]:
            for chunk in input:
                chunks.append(chunk)
                yield chunk

        for value in super()._transform(kept()):
            if self.output is None or self.output.grows:
                yield (last := value)
        if chunks and (final := self.parse_result([_merged(chunks)])) != last:
            yield final

    async def _atransform(self, input: AsyncIterator[str | BaseMessage]) -> AsyncIterator[Any]:  # noqa: A002  as above
        chunks: list[str | BaseMessage] = []
        last: Any = _NOTHING

        async def kept() -> AsyncIterator[str | BaseMessage]:
            async for chunk in input:
                chunks.append(chunk)
                yield chunk

        async for value in super()._atransform(kept()):
            if self.output is None or self.output.grows:
                yield (last := value)
        if chunks and (final := self.parse_result([_merged(chunks)])) != last:
            yield final


class _Answer(_CheckedAtEnd, JsonOutputParser):
    """The answer's JSON."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        if partial:
            return super().parse_result(result, partial=True)
        text, message = result[0].text, _message(result)
        value = _whole(text)
        finish = message.response_metadata.get("finish_reason", "") if message is not None else ""
        open_number = finish == "length" and isinstance(value, int | float) and not isinstance(value, bool)
        if value is _NOTHING or open_number:
            raise OutputParserException(f"the answer {_CUT_OFF.get(finish, _NO_JSON)}", llm_output=text)
        return _read(self.output, value, text)


class _Call(_CheckedAtEnd, JsonOutputKeyToolsParser):
    """The arguments of the forced call."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        message = _message(result)
        if not partial and message is not None and not message.tool_calls:
            reasons = [item.get("error") for item in message.additional_kwargs.get(UNPARSED, ())]
            finish = message.response_metadata.get("finish_reason", "")
            if finish in _CUT_OFF or reasons:
                why = _CUT_OFF.get(finish) or f"is no valid call: {'; '.join(map(str, reasons))}"
                raise OutputParserException(f"the answer {why}", llm_output=result[0].text)
        value = super().parse_result(result, partial=partial)
        if value is None:  # no call
            return None
        if self.output is not None and self.output.wrapped:
            # A model that no grammar holds may leave the wrapping out; the schema says whether what it gave will do.
            value = value.get(WRAPPED, None if partial else value)
        if partial:
            return value
        return _read(self.output, value, json.dumps(value))


def _merged(chunks: Sequence[str | BaseMessage]) -> Generation:
    """One answer of its pieces."""
    if isinstance(chunks[0], BaseMessage):
        message: Any = functools.reduce(operator.add, chunks)
        return ChatGeneration(message=message)
    return Generation(text="".join(map(str, chunks)))


def _message(result: list[Generation]) -> AIMessage | None:
    message = result[0].message if isinstance(result[0], ChatGeneration) else None
    return message if isinstance(message, AIMessage) else None


_NOTHING: Any = object()
_FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)```", re.DOTALL)
_NO_JSON = "is not complete JSON; a stop word may have ended it, or the server does not hold its model to JSON"
_CUT_OFF = {
    "length": "was cut off before its JSON was complete; raise max_tokens",
    "abort": "was aborted before its JSON was complete",
}


def _whole(text: str) -> Any:
    """The JSON value that ``text`` is, or holds in a Markdown fence; nothing is repaired."""
    candidates = [text, *(match[1] for match in _FENCE.finditer(text))]
    for candidate in candidates:
        try:
            return json.loads(candidate, strict=False)
        except (ValueError, RecursionError):
            continue
    return _NOTHING


def _read(output: OutputSchema | None, value: Any, text: str) -> Any:
    if output is None:
        return value
    try:
        return output.read(value)
    except (ValueError, TypeError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise OutputParserException(
            f"the answer breaks the schema {output.name!r}: {error}", llm_output=text
        ) from error

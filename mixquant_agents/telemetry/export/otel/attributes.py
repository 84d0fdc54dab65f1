"""Attributes of spans: OpenTelemetry GenAI, OpenInference, and ours. Plain functions of plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixquant_agents.records import COUNTS, TIMES
from mixquant_agents.telemetry.events import Span, SpanKind, TurnEvent
from mixquant_agents.telemetry.export.sink import clean_text
from mixquant_agents.telemetry.plain import json_of, text_of

__all__ = ["agent_attributes", "chat_attributes", "tool_attributes"]

_CONVENTIONAL = {
    "gen_ai.usage.input_tokens": "prompt_tokens",
    "gen_ai.usage.output_tokens": "decode_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "gen_ai.response.time_to_first_chunk": "ttft_seconds",
    "llm.token_count.prompt": "prompt_tokens",
    "llm.token_count.completion": "decode_tokens",
    "llm.token_count.prompt_details.cache_read": "cached_tokens",
}
"""Names that the conventions (GenAI, OpenInference) have for fields of a record."""
_OWN_NAMES = {
    "quantized_tokens": "mixquant.prefill.quantized_tokens",
    "exact_tokens": "mixquant.prefill.exact_tokens",
    "itl_mean_seconds": "mixquant.inter_token.mean_seconds",
}
_OWN = {
    _OWN_NAMES.get(item.field, f"mixquant.{item.name}.{unit}"): item.field
    for unit, items in (("count", COUNTS), ("seconds", TIMES))
    for item in items
    if item.field not in _CONVENTIONAL.values()
}
"""Our names for the other counts and durations."""


def chat_attributes(event: TurnEvent, node: str | None) -> dict[str, Any]:
    """Of a turn's span. Unknown values are left out. Messages are there only with content recording on."""
    turn = event.turn
    values: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": turn.engine,
        "gen_ai.request.model": turn.model,
        "gen_ai.response.model": turn.model,
        "gen_ai.response.id": turn.turn_id,
        "gen_ai.conversation.id": turn.thread_id,
        "gen_ai.response.finish_reasons": [turn.finish_reason] if turn.finish_reason else None,
        "error.type": turn.error.split(":")[0] if turn.error else None,
        "langgraph.node": node,
        "mixquant.policy": turn.policy,
        "mixquant.prefill.format": turn.prefill_format,
        "mixquant.decode.format": turn.decode_format,
        "mixquant.emulated": turn.emulated,
        "mixquant.storage": turn.storage,
        "mixquant.turn.index": turn.turn_index,
        "mixquant.aborted": turn.aborted or None,
        "openinference.span.kind": "LLM",
        "llm.model_name": turn.model,
        "session.id": turn.thread_id,
        **{name: getattr(turn, field) for name, field in (_CONVENTIONAL | _OWN).items()},
    }
    if turn.prompt_tokens is not None and turn.decode_tokens is not None:
        values["llm.token_count.total"] = turn.prompt_tokens + turn.decode_tokens
    if event.content is not None:
        values["gen_ai.input.messages"] = json_of([_message(message) for message in event.content.messages])
        if event.content.answer is not None:
            values["gen_ai.output.messages"] = json_of([_message(event.content.answer)])
            values["output.value"] = text_of(event.content.answer.get("content") or "")
        if event.content.messages:
            values["input.value"] = text_of(event.content.messages[-1].get("content") or "")
    return _known(values)


def agent_attributes(span: Span) -> dict[str, Any]:
    """Of an agent's run or a graph node's span."""
    agent = span.kind is SpanKind.AGENT
    return _known(
        {
            "gen_ai.operation.name": "invoke_agent" if agent else None,
            "gen_ai.agent.name": span.name if agent else None,
            "gen_ai.conversation.id": span.thread_id,
            "langgraph.node": None if agent else span.name,
            "error.type": _error_type(span),
            "mixquant.cancelled": span.cancelled or None,
            "openinference.span.kind": "AGENT" if agent else "CHAIN",
            "session.id": span.thread_id,
        }
    )


def tool_attributes(span: Span) -> dict[str, Any]:
    """Of a tool call's or a retrieval's span."""
    tool = span.kind is SpanKind.TOOL
    return _known(
        {
            "gen_ai.operation.name": "execute_tool" if tool else "retrieval",
            "gen_ai.tool.name": span.name if tool else None,
            "gen_ai.tool.type": "function" if tool else None,
            "gen_ai.tool.call.id": span.call_id,
            "gen_ai.tool.call.arguments": span.arguments if tool else None,
            "gen_ai.tool.call.result": span.result if tool else None,
            "gen_ai.retrieval.query.text": None if tool else span.arguments,
            "gen_ai.conversation.id": span.thread_id,
            "error.type": _error_type(span),
            "mixquant.cancelled": span.cancelled or None,
            "openinference.span.kind": "TOOL" if tool else "RETRIEVER",
            "tool.name": span.name if tool else None,
            "input.value": span.arguments,
            "output.value": span.result,
            "session.id": span.thread_id,
        }
    )


def _error_type(span: Span) -> str | None:
    if span.error is None:
        return None
    name = span.error.split(":")[0]
    return name if name.isidentifier() else "tool_error"


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: clean_text(value) for name, value in values.items() if value is not None}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI shape to the conventions' ``{"role", "parts"}``."""
    parts: list[dict[str, Any]] = []
    content = message.get("content")
    if message.get("role") == "tool":
        parts.append({"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content})
    elif content:
        parts.append({"type": "text", "content": content if isinstance(content, str) else json_of(content)})
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, Sequence) and not isinstance(calls, str) else ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        name, arguments = function.get("name"), function.get("arguments")
        identity = call.get("id") if isinstance(call, Mapping) else None
        parts.append({"type": "tool_call", "id": identity, "name": name, "arguments": arguments})
    return {"role": str(message.get("role", "?")), "parts": parts}

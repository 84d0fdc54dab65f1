"""Options of one call: what the model was made with, overridden by what the call says → an engine request."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from mixquant_agents.chat.call_options import SAMPLING_OPTIONS
from mixquant_agents.chat.messages import to_engine
from mixquant_agents.chat.plain_json import plain_json
from mixquant_agents.chat.schema_prompt import with_schema
from mixquant_agents.chat.tools import engine_choice, engine_tools, tool_name
from mixquant_agents.engine.base import EngineRequest, JsonObject, Keep, Sampling
from mixquant_agents.errors import GrammarError, InvalidSamplingError, RequestError
from mixquant_agents.telemetry.trace_context import active_trace_context

__all__ = ["engine_request", "new_request_id"]


def new_request_id() -> str:
    """An id that no other request has."""
    return f"turn-{uuid.uuid4().hex}"


def engine_request(
    messages: Sequence[BaseMessage],
    options: Mapping[str, Any],
    *,
    model: str,
    thread_id: str | None = None,
    certain: bool = False,
) -> EngineRequest:
    """The request of one call.

    Args:
        options: the model's own, overridden by the call's (:func:`checked_options`).
        model: the name that ``options["model"]`` must have, if it is there.
        thread_id: the conversation's.
        certain: the messages are the beginning of a conversation, of which there may be none yet.

    Raises:
        RequestError: a setting contradicts another.
        InvalidMessagesError: see :func:`to_engine`.
    """
    if options.get("model", model) != model:
        raise RequestError(
            f"this chat model runs {model!r} and cannot answer as {options['model']!r}; make another MixQuantChatModel"
        )
    tools = engine_tools(options.get("tools", ()))
    names = [tool_name(tool) for tool in tools]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise RequestError(f"several tools are called {', '.join(map(repr, repeated))}; give each its own name")
    schema, json_mode, checked = _schema(options.get("response_format"))
    choice = engine_choice(options.get("tool_choice"), tools)
    if schema is not None and choice not in ("auto", "none"):
        raise RequestError(
            "an answer cannot be a forced tool call and JSON by a schema at once; drop tool_choice, or the schema"
        )
    schema = plain_json(schema, "the schema of the answer")
    conversation = to_engine(messages) if messages or not certain else []
    if schema is not None and schema.keys() != {"type"} and options.get("schema_in_prompt") is not False:
        conversation = with_schema(conversation, schema, tools=bool(tools) and choice != "none")
    return EngineRequest(
        request_id=new_request_id(),
        messages=conversation,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=options.get("parallel_tool_calls") is not False,
        schema=schema,
        schema_checked=checked or bool(tools),  # run_turn checks an answer beside tools
        json_mode=json_mode,
        sampling=_sampling(options),
        reasoning_effort=options.get("reasoning_effort"),
        chat_template_kwargs=options.get("chat_template_kwargs") or {},
        verbatim_history=options.get("verbatim_history") is not False,
        cache_salt=options.get("cache_salt"),
        priority=options.get("priority") or 0,
        keep=_keep(options),
        user=options.get("user"),
        thread_id=thread_id,
        trace_context=options.get("trace_context") or active_trace_context(),
    )


def _keep(options: Mapping[str, Any]) -> Keep | None:
    seconds = options.get("keep_seconds")
    return None if seconds is None else Keep(seconds=seconds, tokens=options.get("keep_tokens"))


def _sampling(options: Mapping[str, Any]) -> Sampling:
    stop = options.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(stop):
        raise InvalidSamplingError(f"stop={list(stop)!r} holds ''; every stop word must have a character")
    top, asked_for = options.get("top_logprobs"), options.get("logprobs")
    if top and asked_for is False:
        raise InvalidSamplingError(f"top_logprobs={top} needs logprobs=True")
    logprobs = top if top is not None else 0 if asked_for else None
    sampling = {name: options[name] for name in SAMPLING_OPTIONS if options.get(name) is not None}
    return Sampling(**sampling, stop=stop, logprobs=logprobs, extra=options.get("sampling_extra") or {})


def _schema(response_format: Any) -> tuple[JsonObject | None, bool, bool]:
    """The JSON schema of an OpenAI ``response_format`` (``None`` for plain text), whether it asks for JSON mode, and
    whether the finished answer will be checked (``"checked": True``, as ``with_structured_output`` says)."""
    match response_format:
        case None | {"type": "text"}:
            return None, False, False
        case {"type": "json_object", "schema": dict(schema), **rest}:
            return schema, True, rest.get("checked") is True
        case {"type": "json_object", **rest} if "schema" not in rest:
            return {"type": "object"}, True, False
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}, **rest}:
            return schema, False, rest.get("checked") is True
        case _:
            raise GrammarError(
                f"response_format={response_format!r} is not understood; use with_structured_output, or "
                '{"type": "json_schema", "json_schema": {"name": …, "schema": …}}'
            )

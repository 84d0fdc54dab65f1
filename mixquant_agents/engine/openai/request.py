"""An engine request as the body of a chat completion, in the dialect that its server takes. Needs no ``openai``."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mixquant_agents.engine.base import EngineRequest, Message, NamedTool
from mixquant_agents.engine.openai.answer import REASONING_FIELDS
from mixquant_agents.errors import InvalidMessagesError, RequestError
from mixquant_agents.unicode import well_formed

__all__ = ["Dialect", "wire_body", "wire_messages"]


_HEADER_VALUE = re.compile(r"[!-~]{1,256}")
"""Conversation ids that go into a header as they are."""


class Dialect:
    """Which optional fields a server takes. It is learned: strict servers refuse a request for a field they do not
    know, lenient ones ignore it.

    Only what the caller did not ask for, or what this side can hold to alone, is ever left out.

    Attributes:
        reasoning_field: under which name the server sends reasoning, and so reads it.
    """

    def __init__(self) -> None:
        self.reasoning_field = REASONING_FIELDS[0]
        self._refused: set[str] = set()

    def takes(self, field: str) -> bool:
        """Whether ``field`` may be sent."""
        return field not in self._refused

    def learn(self, words: str, request: EngineRequest) -> bool:
        """Note what a server's refusal names; ``True`` where the request then is another, worth sending again."""
        before = set(self._refused)
        for field in self._sent(request):
            if field not in self._refused and re.search(rf"\b{field}\b", words):
                self._refused.add(field)
        if _json_mode_by_schema(request) and re.search(r"\b(json_schema|response_format)\b", words):
            self._refused.add("json_schema")
        if "max_completion_tokens" in words and request.sampling.max_tokens is not None:
            self._refused.add("max_tokens")
        return self._refused != before

    def _sent(self, request: EngineRequest) -> list[str]:
        """The optional fields that this request holds."""
        sent = ["stream_options"]
        if any("reasoning_content" in message for message in request.messages):
            sent.append(self.reasoning_field)
        if request.tools and not request.parallel_tool_calls:
            sent.append("parallel_tool_calls")
        if request.tools and request.tool_choice == "auto":
            sent.append("tool_choice")
        if request.schema is not None and not request.json_mode:
            sent.append("strict")
        if request.sampling.logprobs == 0:
            sent.append("top_logprobs")
        return sent


def wire_messages(messages: Sequence[Message], dialect: Dialect) -> list[dict[str, Any]]:
    """The messages, with an earlier answer's reasoning under the name by which the server sent it.

    Raises:
        InvalidMessagesError: a message holds what JSON cannot.
    """
    result = []
    for number, message in enumerate(messages, 1):
        try:
            plain = dict(_json_value(message))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidMessagesError(f"message {number} cannot be written as JSON: {_reason(error)}") from None
        reasoning = plain.pop("reasoning_content", None)
        if reasoning is not None and dialect.takes(dialect.reasoning_field):
            plain[dialect.reasoning_field] = reasoning
        result.append(plain)
    return result


def wire_body(
    request: EngineRequest, model: str, dialect: Dialect, session_headers: Sequence[str] = ()
) -> dict[str, Any]:
    """The arguments of ``chat.completions.create``; what OpenAI does not know goes into ``extra_body``.

    Args:
        session_headers: headers that tell routers the conversation.

    Raises:
        RequestError: the request holds what cannot be sent.
    """
    if request.prompt_token_ids is not None:
        raise RequestError("a remote engine renders the messages itself; leave prompt_token_ids out")
    sampling = request.sampling
    remote_decode = bool((request.kv_transfer or {}).get("do_remote_decode"))
    body: dict[str, Any] = {"model": model, "stream": not remote_decode}  # vLLM tells where KV is in whole answers only
    if body["stream"] and dialect.takes("stream_options"):
        body["stream_options"] = {"include_usage": True}
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed"):
        if (value := getattr(sampling, name)) is not None:
            body[name] = value
    if sampling.max_tokens is not None:
        body["max_tokens" if dialect.takes("max_tokens") else "max_completion_tokens"] = sampling.max_tokens
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if request.reasoning_effort is not None:
        body["reasoning_effort"] = request.reasoning_effort
    if request.user is not None:
        body["user"] = request.user
    if sampling.logprobs is not None:
        body["logprobs"] = True
        if sampling.logprobs or dialect.takes("top_logprobs"):
            body["top_logprobs"] = sampling.logprobs
    if request.tools:
        choice = request.tool_choice
        body["tools"] = list(request.tools)
        if choice != "auto" or dialect.takes("tool_choice"):
            named = {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedTool) else choice
            body["tool_choice"] = named
        if not request.parallel_tool_calls and dialect.takes("parallel_tool_calls"):
            body["parallel_tool_calls"] = False
    if request.schema is not None:
        body["response_format"] = _response_format(request, dialect)
    if extra := _extra(request):
        body["extra_body"] = extra
    if headers := {**(request.trace_context or {}), **_session(request, session_headers)}:
        body["extra_headers"] = headers
    try:
        body = dict(_json_value(body))
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the request cannot be written as JSON: {_reason(error)}") from None
    return {**body, "messages": wire_messages(request.messages, dialect)}


def _session(request: EngineRequest, names: Sequence[str]) -> dict[str, str]:
    """The conversation's id, by the headers by which routers know it. What no header can hold is sent as its digest:
    the same for each turn of the conversation."""
    thread = request.thread_id
    if thread is None:
        return {}
    if not _HEADER_VALUE.fullmatch(thread):
        thread = hashlib.sha256(thread.encode("utf-8", "surrogatepass")).hexdigest()
    return dict.fromkeys(names, thread)


def _json_mode_by_schema(request: EngineRequest) -> bool:
    """JSON mode whose schema is known: a server with a grammar holds the answer to it, as a local engine does."""
    return request.json_mode and request.schema is not None and dict(request.schema) != {"type": "object"}


def _response_format(request: EngineRequest, dialect: Dialect) -> dict[str, Any]:
    known = request.schema is not None and dict(request.schema) != {"type": "object"}
    if not known or (request.json_mode and not dialect.takes("json_schema")):
        return {"type": "json_object"}
    strict = dialect.takes("strict") and not request.json_mode  # JSON mode takes schemas that strict servers refuse
    named = {"name": "answer", "schema": request.schema} | ({"strict": True} if strict else {})
    return {"type": "json_schema", "json_schema": named}


def _extra(request: EngineRequest) -> dict[str, Any]:
    """vLLM's settings that OpenAI does not know."""
    sampling = request.sampling
    extra: dict[str, Any] = dict(sampling.extra)
    for name in ("top_k", "min_p", "min_tokens", "repetition_penalty"):
        if (value := getattr(sampling, name)) is not None:
            extra[name] = value
    if sampling.ignore_eos:
        extra["ignore_eos"] = True
    if request.chat_template_kwargs:
        extra["chat_template_kwargs"] = dict(request.chat_template_kwargs)
    if request.cache_salt is not None:
        extra["cache_salt"] = request.cache_salt
    if request.priority:
        extra["priority"] = request.priority
    if request.kv_transfer is not None:
        extra["kv_transfer_params"] = request.kv_transfer
    return extra


def _json_value(value: Any) -> Any:
    """``value`` in JSON's own types, its texts well-formed.

    Raises:
        TypeError, ValueError: JSON has no form for it.
    """
    if isinstance(value, str):
        return well_formed(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no JSON number")
        return value
    if isinstance(value, Mapping):
        return {_key(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_json_value(item) for item in value]
    raise TypeError(f"{value!r:.100} is a {type(value).__name__}")


def _key(key: object) -> str:
    if isinstance(key, str):
        return well_formed(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)  # as of logit_bias, which has token ids for keys
    raise TypeError(f"the key {key!r:.100} is a {type(key).__name__}")


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)

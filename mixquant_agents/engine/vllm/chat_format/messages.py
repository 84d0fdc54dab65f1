"""What a conversation is: messages in the OpenAI chat shape, checked, with their text as one string."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mixquant_agents.engine.base import JsonObject, Message
from mixquant_agents.errors import InvalidMessagesError

__all__ = ["json_object", "mended", "needs_tools", "plain_messages"]


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with text content as one string and the arguments of calls as JSON text.

    Raises:
        InvalidMessagesError: no messages, no role, content that is no text, or a call without a name.
    """
    if not messages:
        raise InvalidMessagesError("there are no messages; give at least one")
    return [_plain(message, index) for index, message in enumerate(messages)]


def needs_tools(messages: Sequence[Message]) -> bool:
    """Whether the conversation holds calls or results, which a template without tools cannot write."""
    return any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object written in ``text`` (blank is an empty one); ``None`` where it holds none."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def mended(value: Any) -> Any:
    """The value with U+FFFD for halves of surrogate pairs, which no tokenizer can encode, in every text inside it."""
    if isinstance(value, str):
        if value.isascii():
            return value
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {mended(key): mended(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mended(item) for item in value]
    return value


def _plain(message: Message, index: int) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise InvalidMessagesError(f"message {index} has no role; give system, user, assistant or tool")
    entry: dict[str, Any] = mended(
        {key: value for key, value in message.items() if key not in ("content", "tool_calls")}
    )
    entry["content"] = mended(_text(message.get("content"), index))
    if entry.get("tool_call_id") is not None:
        entry["tool_call_id"] = str(entry["tool_call_id"])
    if message.get("tool_calls"):
        entry["tool_calls"] = [_call(call, index) for call in message["tool_calls"]]
    return entry


def _text(content: Any, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidMessagesError(f"message {index} has content of type {type(content).__name__}; give text")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InvalidMessagesError(f"message {index} holds a part of type {kind!r}; only text is supported")
    return "".join(texts)


def _call(call: Any, index: int) -> dict[str, Any]:
    function: JsonObject | None = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise InvalidMessagesError(f"message {index} holds a tool call without function name: {call!r}")
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False, default=str)
    rest = {key: value for key, value in call.items() if key not in ("id", "type", "function")}
    call_id = call.get("id")
    return {
        "id": None if call_id is None else mended(str(call_id)),
        **mended(rest),
        "type": "function",
        "function": {"name": mended(name), "arguments": mended(text)},
    }

"""LangChain messages → the engine's messages (OpenAI chat shape). Text only: what cannot be rendered is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from mixquant_agents.engine.base import Message
from mixquant_agents.errors import InvalidMessagesError
from mixquant_agents.unicode import well_formed, well_formed_json

__all__ = ["REASONING", "UNPARSED", "ai_messages", "no_conversation", "to_engine"]

REASONING = "reasoning_content"
"""Key in ``additional_kwargs`` under which LangChain looks for reasoning."""
UNPARSED = "unparsed_tool_calls"
"""Key in ``additional_kwargs`` for the text and the reason of each entry of ``invalid_tool_calls``."""

_TEXT = frozenset({"text", "text-plain", "input_text", "output_text"})
_CALLS = frozenset(
    {"tool_call", "tool_use", "function_call", "tool_call_chunk", "invalid_tool_call", "input_json_delta"}
)
_THOUGHTS = frozenset({"reasoning", "thinking", "redacted_thinking"})
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "system": "system"}
_ROLES |= {"developer": "system", "tool": "tool"}


def ai_messages(messages: Iterable[BaseMessage]) -> int:
    """How many answers of the model the input holds: the index of the turn to come."""
    return sum(isinstance(message, AIMessage) for message in messages)


def to_engine(messages: Sequence[BaseMessage]) -> list[Message]:
    """The conversation in the engine's shape, in the same order.

    Raises:
        InvalidMessagesError: no messages, a message of an unknown kind, or content that is no text.
    """
    if not messages:
        raise InvalidMessagesError("there are no messages; give at least one")
    nameless = _nameless_calls(messages)
    return [well_formed_json(_convert(message, number, nameless)) for number, message in enumerate(messages, 1)]


def _nameless_calls(messages: Sequence[BaseMessage]) -> set[str]:
    """Ids of calls that name no tool: they are sent as text, so there is no call that an answer could belong to."""
    answers = (message for message in messages if isinstance(message, AIMessage))
    calls = (call for answer in answers for call in (*answer.tool_calls, *answer.invalid_tool_calls))
    return {call["id"] for call in calls if call["id"] is not None and not call["name"]}


def no_conversation(given: object, error: Exception) -> InvalidMessagesError:
    """Why LangChain could not make messages of what the model was ``given``: which message it is, where one is."""
    why = str(error).partition("\n")[0].rstrip(".")  # a link to LangChain's pages follows
    if isinstance(error, KeyError):
        why = f"it has no {error}"
    if isinstance(given, Sequence) and not isinstance(given, str):
        for number, message in enumerate(given, 1):
            if (broken := _broken_arguments(message)) is not None:
                return InvalidMessagesError(f"message {number}: {broken}")
            try:
                convert_to_messages([message])
            except Exception:  # LangChain reads what it is given without a look at it
                return InvalidMessagesError(f"message {number} is not valid: {why}; give a text, or a message")
    return InvalidMessagesError(f"this is no conversation: {why}; give a text, or a list of messages")


def _broken_arguments(message: object) -> str | None:
    """What is wrong with the calls of a message in OpenAI's dict form, whose arguments are JSON in a string."""
    calls = message.get("tool_calls") if isinstance(message, Mapping) else None
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(function, Mapping) and isinstance(arguments, str):
            try:
                json.loads(arguments, strict=False)
            except (ValueError, RecursionError) as error:
                return (
                    f"the arguments of its call of {function.get('name')!r} are not valid JSON ({error}): "
                    f"{_short(arguments)}; write the JSON out, or give the call as an invalid_tool_call of an AIMessage"
                )
    return None


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def _convert(message: BaseMessage, number: int, nameless: Collection[str]) -> Message:
    match message:
        case AIMessage():
            return _assistant(message, number)
        case HumanMessage():
            converted: dict[str, Any] = {"role": "user", "content": _text(message, number)}
        case SystemMessage():
            converted = {"role": "system", "content": _text(message, number)}
        case ToolMessage() if message.tool_call_id in nameless:
            return {"role": "user", "content": _text(message, number)}
        case ToolMessage():
            converted = {
                "role": "tool",
                "content": _text(message, number),
                "tool_call_id": message.tool_call_id,
            }
        case FunctionMessage():
            converted = {"role": "tool", "content": _text(message, number)}
        case ChatMessage() if message.role in _ROLES:
            converted = {"role": _ROLES[message.role], "content": _text(message, number)}
        case _:
            what = f"role {message.role!r}" if isinstance(message, ChatMessage) else type(message).__name__
            raise InvalidMessagesError(
                f"message {number} is a {what}, which no chat template renders; use system, human, ai or tool messages"
            )
    if message.name:
        converted["name"] = message.name
    return converted


def _assistant(message: AIMessage, number: int) -> Message:
    content = _text(message, number)
    calls = [
        _call(call["id"], call["name"], _json(call["args"], number)) for call in message.tool_calls if call["name"]
    ]
    call_ids = {call["id"] for call in message.tool_calls}
    for block in _blocks(message):  # other providers' messages may have their calls in the content alone
        if block.get("type") in ("tool_call", "tool_use") and block.get("name") and block.get("id") not in call_ids:
            arguments = block.get("args", block.get("input", {}))
            calls.append(_call(block.get("id"), str(block.get("name")), _json(arguments, number)))
    raw = {item.get("id"): item.get("text") for item in message.additional_kwargs.get(UNPARSED) or ()}
    for broken in message.invalid_tool_calls:
        written = raw.get(broken.get("id"))
        text = str(written if written is not None else broken.get("args") or "")
        if broken.get("name"):
            calls.append(_call(broken.get("id"), str(broken["name"]), _joined_escapes(text)))
        else:  # it never became a call: the model sees what it wrote
            content = f"{content}\n{text}" if content else text
    converted: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        converted["tool_calls"] = calls
    if reasoning := _reasoning(message):
        converted["reasoning_content"] = reasoning
    if message.name:
        converted["name"] = message.name
    return converted


def _call(call_id: object, name: str, arguments: str) -> Message:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _json(value: object, number: int) -> str:
    """Arguments as strict JSON. What JSON has no word for: a number that is none becomes null, all else its text."""
    if isinstance(value, str):
        return _joined_escapes(value)
    try:
        return well_formed(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str))
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return well_formed(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, an object that holds itself
        why = "they hold themselves, or are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidMessagesError(
            f"message {number} holds a call whose arguments cannot be written as JSON: {why}"
        ) from None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def _joined_escapes(arguments: str) -> str:
    """``arguments`` as they are, unless half of a surrogate pair is written in them as an escape: who reads the JSON
    would have it in the text."""
    if _SURROGATE_ESCAPE.search(arguments):
        try:
            return json.dumps(well_formed_json(json.loads(arguments, strict=False)), ensure_ascii=False)
        except (ValueError, RecursionError):
            pass  # no JSON: nobody will read the escapes
    return arguments


def _reasoning(message: AIMessage) -> str:
    reasoning = message.additional_kwargs.get(REASONING)
    if isinstance(reasoning, str):
        return reasoning
    blocks = (block for block in _blocks(message) if block.get("type") in _THOUGHTS)
    return "".join(str(block.get("reasoning") or block.get("thinking") or "") for block in blocks)


def _blocks(message: BaseMessage) -> list[Mapping[str, Any]]:
    content = message.content
    return [] if isinstance(content, str) else [block for block in content if isinstance(block, dict)]


def _text(message: BaseMessage, number: int) -> str:
    """The text of a message. Blocks of an answer are one text in pieces; blocks of other messages are paragraphs.

    What a tool returned beside text is named in its place (``[image content]``): the user of an agent cannot take it
    out of the thread.
    """
    content = message.content
    if isinstance(content, str):
        return content or _refusal(message)
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
            continue
        kind = block.get("type")
        if kind in _TEXT or (kind is None and "text" in block):
            texts.append(str(block.get("text") or ""))
        elif kind == "refusal":
            texts.append(str(block.get("refusal") or ""))
        elif isinstance(message, ToolMessage | FunctionMessage):
            texts.append(f"[{str(kind).removesuffix('_url')} content]" if kind else _json(block, number))
        elif not (isinstance(message, AIMessage) and kind in (_CALLS | _THOUGHTS)):
            raise InvalidMessagesError(
                f"message {number} ({message.type}) holds a content block of type {kind!r}; this model reads text "
                "only: remove the block, or describe it in words"
            )
    return ("" if isinstance(message, AIMessage) else "\n").join(texts)


def _refusal(message: BaseMessage) -> str:
    """What OpenAI's models say instead of content when they refuse."""
    refusal = message.additional_kwargs.get("refusal") if isinstance(message, AIMessage) else None
    return refusal if isinstance(refusal, str) else ""

"""The adaptations that a chat template may need, and the conversation after them.

A template takes the messages as they are wherever it can: the first shape changes nothing. The others are what
templates of public models were found to need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, Literal

from mixquant_agents.engine.base import JsonObject
from mixquant_agents.engine.vllm.chat_format.call_ids import IdForm, with_ids
from mixquant_agents.engine.vllm.chat_format.messages import json_object
from mixquant_agents.engine.vllm.chat_format.prompted import (
    PARAGRAPH,
    CallSyntax,
    in_words,
    with_schemas,
)

__all__ = ["Shape", "ToolForm", "alternatives", "shaped"]

ToolForm = Literal["native", "spoken", "listed", "prompted"]
"""``native``: the template writes schemas, calls and results. ``spoken``: all but the calls, which the makers leave to
the answer's text. ``listed``: calls and results; the schemas go into the system text. ``prompted``: none of them (see
``prompted``)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to hand a conversation to a template.

    Attributes:
        tools: who writes the tools.
        ids: form of the calls' ids.
        arguments: calls' arguments as objects, or as JSON text.
        no_text: content of an answer that has calls and no text: ``""``, ``None``, or no such key.
        systems: ``given``; ``joined``: the leading ones as one message, later ones as user turns at their place;
            ``user``: likewise, and the leading ones begin the first user turn.
        merged: neighbouring messages of one role are one message.
        parts: content as a list of text parts.
        named: a result without a name gets its call's.
        thoughts: earlier reasoning is handed over.
        text_apart: text and calls of one answer as two messages.
        one_call: parallel calls as one call after the other, each with its result.
        filled: turns that nobody took stand as ``...``: an answer without text, an answer between a result and the
            user's next turn, a turn of the user in front of an answer and between its text and its calls.
    """

    tools: ToolForm = "native"
    ids: IdForm = "given"
    arguments: Literal["object", "text"] = "object"
    no_text: Literal["empty", "none", "absent"] = "empty"
    systems: Literal["given", "joined", "user"] = "given"
    merged: bool = False
    parts: bool = False
    named: bool = False
    thoughts: bool = True
    text_apart: bool = False
    one_call: bool = False
    filled: bool = False


_OPTIONS: dict[str, tuple[tuple[Any, float], ...]] = {
    "ids": (("nine", 1.0), ("indexed", 1.1)),
    "arguments": (("text", 1.0),),
    "no_text": (("none", 1.0), ("absent", 1.2)),
    "systems": (("joined", 1.0), ("user", 2.1)),
    "merged": ((True, 1.1),),
    "parts": ((True, 1.2),),
    "named": ((True, 1.1),),
    "thoughts": ((False, 1.6),),
    "text_apart": ((True, 1.5),),
    "one_call": ((True, 1.5),),
    "filled": ((True, 1.6),),
}
"""What may differ from a base shape, and how far that is from the conversation as it was given."""
_FARTHEST = 5.5


def alternatives(base: Shape, messages: Sequence[dict[str, Any]]) -> Iterable[Shape]:
    """``base`` and what differs from it where that matters for these messages, nearest first."""
    calls = [message for message in messages if message.get("tool_calls")]
    native = base.tools in ("native", "listed")
    free = {
        "ids": base.tools != "prompted" and bool(calls),
        "arguments": native and bool(calls),
        "no_text": native and any(not message["content"] for message in calls),
        "systems": base.tools in ("listed", "prompted") or any(message["role"] == "system" for message in messages),
        "merged": True,
        "parts": True,
        "named": base.tools != "prompted" and any(m["role"] == "tool" and not m.get("name") for m in messages),
        "thoughts": any(message.get("reasoning_content") for message in messages),
        "text_apart": native and any(message["content"] for message in calls),
        "one_call": native and any(len(message["tool_calls"]) > 1 for message in calls),
        "filled": any(message["content"] for message in calls) or _filled(messages) != list(messages),
    }
    return _alternatives(base, tuple(name for name, matters in free.items() if matters))


@lru_cache(maxsize=64)
def _alternatives(base: Shape, names: tuple[str, ...]) -> tuple[Shape, ...]:
    choices = [((getattr(base, name), 0.0), *_OPTIONS[name]) for name in names]
    weighed = []
    for picked in product(*choices):
        distance = sum(weight for _, weight in picked)
        if distance <= _FARTHEST:
            weighed.append(
                (distance, replace(base, **{name: value for name, (value, _) in zip(names, picked, strict=True)}))
            )
    weighed.sort(key=lambda pair: pair[0])  # stable: the order of the options decides between equals
    return tuple(dict.fromkeys(shape for _, shape in weighed))


def shaped(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[JsonObject],
    shape: Shape,
    *,
    thought_key: str = "reasoning_content",
    example: str | None = None,
    syntax: CallSyntax = "hermes",
) -> tuple[list[dict[str, Any]], list[JsonObject]]:
    """Messages and tools for the template.

    Args:
        messages: as ``plain_messages`` gives them.
        tools: function tools, OpenAI shape.
        shape: the adaptations.
        thought_key: the key under which the template looks for earlier reasoning.
        example: a call in the template's own form, for the form ``listed``.
        syntax: how calls are written in the form ``spoken``.
    """
    changed = list(messages)
    if shape.tools in ("listed", "prompted"):
        changed = with_schemas(changed, tools, example if shape.tools == "listed" else None)
    if shape.tools != "prompted":
        changed = _with_calls(changed, shape)
    if shape.tools == "prompted":
        changed = in_words(changed)
    elif shape.tools == "spoken":
        changed = in_words(changed, syntax, results=False)
    if shape.systems != "given":
        changed = _few_systems(changed, first_user=shape.systems == "user")
    if shape.merged:
        changed = _merged(changed, calls_apart=shape.text_apart)
    if shape.filled:
        changed = _filled(changed)
    changed = [_thoughts(message, thought_key if shape.thoughts else None) for message in changed]
    if shape.parts:
        changed = [_in_parts(message) for message in changed]
    return changed, [dict(tool) for tool in tools] if shape.tools in ("native", "spoken") else []


def _with_calls(messages: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    if shape.one_call:
        messages = _one_by_one(messages)
    messages = with_ids(messages, shape.ids)
    if shape.named:
        messages = _named(messages)
    changed: list[dict[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls")
        if not calls:
            changed.append(message)
            continue
        if shape.text_apart and message["content"]:
            changed.append({"role": message["role"], "content": message["content"]})
            message = {**message, "content": ""}
        if shape.tools == "spoken":
            changed.append(message)
            continue
        entry = {**message, "tool_calls": [_with_arguments(call, shape.arguments) for call in calls]}
        if not message["content"]:
            if shape.no_text == "none":
                entry["content"] = None
            elif shape.no_text == "absent":
                del entry["content"]
        changed.append(entry)
    return changed


def _with_arguments(call: dict[str, Any], form: str) -> dict[str, Any]:
    """Arguments that are no JSON object stay text in either form: a call that the model cut off."""
    function = call["function"]
    if form == "text":
        return {**call, "function": {**function, "arguments": function["arguments"] or "{}"}}
    value = json_object(function["arguments"])
    return call if value is None else {**call, "function": {**function, "arguments": value}}


def _one_by_one(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parallel calls, and the results behind them, as single calls each followed by its result."""
    changed: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            changed.append(message)
            continue
        results = []
        while at < len(messages) and messages[at]["role"] == "tool":
            results.append(messages[at])
            at += 1
        for index, call in enumerate(calls):
            single = {**message, "tool_calls": [call]} if index == 0 else {"role": message["role"], "content": ""}
            changed.append({**single, "tool_calls": [call]})
            answer = next((result for result in results if result.get("tool_call_id") == call.get("id")), None)
            if answer is None and results and not results[0].get("tool_call_id"):
                answer = results[0]
            if answer is not None:
                results.remove(answer)
                changed.append(answer)
        changed.extend(results)
    return changed


def _named(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names: dict[Any, str] = {}
    waiting: list[str] = []
    changed = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            names[call.get("id")] = call["function"]["name"]
            waiting.append(call["function"]["name"])
        if message["role"] == "tool":
            by_id = names.get(message.get("tool_call_id")) if message.get("tool_call_id") else None
            name = message.get("name") or by_id or (waiting[0] if waiting else "unknown")
            if name in waiting:
                waiting.remove(name)
            message = {**message, "name": name}
        changed.append(message)
    return changed


def _few_systems(messages: list[dict[str, Any]], *, first_user: bool) -> list[dict[str, Any]]:
    leading = 0
    while leading < len(messages) and messages[leading]["role"] == "system":
        leading += 1
    text = PARAGRAPH.join(message["content"] for message in messages[:leading] if message["content"])
    rest = [{**message, "role": "user"} if message["role"] == "system" else message for message in messages[leading:]]
    if not leading:
        return rest
    if not first_user:
        return [{**messages[0], "content": text}, *rest]
    if rest and rest[0]["role"] == "user":
        whole = PARAGRAPH.join(part for part in (text, rest[0]["content"]) if part)
        return [{**rest[0], "content": whole}, *rest[1:]]
    return [{"role": "user", "content": text}, *rest]


def _merged(messages: list[dict[str, Any]], *, calls_apart: bool) -> list[dict[str, Any]]:
    changed: list[dict[str, Any]] = []
    for message in messages:
        before = changed[-1] if changed else None
        if (
            before is not None
            and before["role"] == message["role"] in ("user", "assistant")
            and not before.get("tool_calls")
            and not (calls_apart and message.get("tool_calls"))
        ):
            texts = [text for text in (before.get("content"), message.get("content")) if text]
            changed[-1] = {**before, **message, "content": PARAGRAPH.join(texts)}
        else:
            changed.append(message)
    return changed


_NO_WORDS = "..."


def _filled(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as templates count turns that want user and answer to take turns: calls and results are none."""
    changed: list[dict[str, Any]] = []
    speaker = "assistant"
    for index, message in enumerate(messages):
        role, calls = message["role"], message.get("tool_calls")
        if role == "assistant" and not calls and not message["content"]:
            message = {**message, "content": _NO_WORDS}
        if role == "user" and speaker == "user" and messages[index - 1]["role"] == "tool":
            changed.append({"role": "assistant", "content": _NO_WORDS})
        elif role == "assistant" and speaker == "assistant":
            changed.append({"role": "user", "content": _NO_WORDS})
            speaker = "user"
        if role == "user" or (role == "assistant" and not calls):
            speaker = role
        changed.append(message)
    return changed


def _thoughts(message: dict[str, Any], key: str | None) -> dict[str, Any]:
    if "reasoning_content" not in message or key == "reasoning_content":
        return message
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    return rest if key is None else {**rest, key: message["reasoning_content"]}


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}] if content else []}

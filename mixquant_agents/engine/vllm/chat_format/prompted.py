"""Tools in words, for a chat template that knows none: its own roles and markers stay, and only texts are added.

* The tools' schemas end the first system message (a new one where there is none): a fixed place at the prompt's
  beginning, so the prefix cache holds them for the whole conversation.
* A call is text of the assistant's turn, in the form that ``HermesParser`` reads and the grammar writes. The arguments
  are the text that the model wrote.
* Results are one user turn, in the calls' order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from mixquant_agents.engine.base import JsonObject
from mixquant_agents.engine.hermes import CALL_CLOSE, CALL_OPEN
from mixquant_agents.engine.vllm.chat_format.messages import json_object

__all__ = ["PARAGRAPH", "CallSyntax", "call_syntax", "in_words", "with_schemas"]

CallSyntax = Literal["hermes", "granite", "lfm2"]
PARAGRAPH = "\n\n"
_EXAMPLE = f'{CALL_OPEN}\n{{"name": "FUNCTION", "arguments": {{"PARAMETER": "VALUE"}}}}\n{CALL_CLOSE}'


def with_schemas(
    messages: Sequence[dict[str, Any]], tools: Sequence[JsonObject], example: str | None = None
) -> list[dict[str, Any]]:
    """The messages with the tools' schemas at the end of the leading system text.

    Args:
        messages: the conversation.
        tools: function tools, OpenAI shape.
        example: how a call of ``FUNCTION`` looks; ``None`` is the Hermes form.
    """
    if not tools:
        return list(messages)
    text = _preamble(tools, example or _EXAMPLE)
    leading = 0
    while leading < len(messages) and messages[leading]["role"] == "system":
        leading += 1
    if not leading:
        return [{"role": "system", "content": text}, *messages]
    last = messages[leading - 1]
    joined = {**last, "content": f"{last['content']}{PARAGRAPH}{text}" if last["content"] else text}
    return [*messages[: leading - 1], joined, *messages[leading:]]


def in_words(
    messages: Sequence[dict[str, Any]], syntax: CallSyntax = "hermes", *, results: bool = True
) -> list[dict[str, Any]]:
    """The messages with calls as text of the assistant's turn and, with ``results``, results as user turns."""
    spoken: list[dict[str, Any]] = []
    waiting: list[str] = []

    def answer() -> None:
        if waiting:
            spoken.append({"role": "user", "content": "\n".join(waiting)})
            waiting.clear()

    for message in messages:
        if message["role"] == "tool" and results:
            waiting.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        answer()
        calls = message.get("tool_calls")
        if calls:
            written = _WRITERS[syntax]([call["function"] for call in calls])
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            spoken.append({**rest, "content": "\n".join(text for text in (message["content"], written) if text)})
        else:
            spoken.append(message)
    answer()
    return spoken


def call_syntax(source: str) -> CallSyntax | None:
    """The form of calls that a template expects in an answer's own text; ``None`` where none is known."""
    return next((syntax for mark, syntax in _MARKS if mark in source), None)


def _hermes(functions: Sequence[JsonObject]) -> str:
    return "\n".join(f"{CALL_OPEN}\n{_object(call)}\n{CALL_CLOSE}" for call in functions)


def _granite(functions: Sequence[JsonObject]) -> str:
    return f"<|tool_call|>[{', '.join(map(_object, functions))}]"


def _lfm2(functions: Sequence[JsonObject]) -> str:
    calls = []
    for call in functions:
        arguments = json_object(call["arguments"]) or {}
        calls.append(f"{call['name']}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
    return f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>"


_WRITERS: dict[CallSyntax, Callable[[Sequence[JsonObject]], str]] = {
    "hermes": _hermes,
    "granite": _granite,
    "lfm2": _lfm2,
}
_MARKS: tuple[tuple[str, CallSyntax], ...] = (
    ("<|tool_call_start|>", "lfm2"),
    ("<|tool_list_start|>", "lfm2"),
    ("<|tool_call|>", "granite"),
    ("<tool_call>", "hermes"),
)
"""What stands in a template that tells the model how to call → the form."""


def _object(function: JsonObject) -> str:
    """One call as JSON; the arguments stay the text that the model wrote."""
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'{{"name": {name}, "arguments": {function["arguments"].strip() or "{}"}}}'


def _preamble(tools: Sequence[JsonObject], example: str) -> str:
    schemas = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False, default=str) for tool in tools)
    return (
        "# Functions\n"
        "You may call these functions. Each line is the JSON schema of one:\n"
        f"<tools>\n{schemas}\n</tools>\n"
        "To call a function, write its name and its arguments in exactly this form:\n"
        f"{example}\n"
        "Several calls follow one another in this form. Their results come in the next message. Where no function is "
        "needed, answer in words."
    )

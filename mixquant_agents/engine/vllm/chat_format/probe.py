"""Whether a template keeps what it is given: the same conversation, filled with words that nothing else contains.

A template is a program; what it drops or mangles it drops in silence (calls beside text, results of an unknown role, a
second system message). The real words cannot tell, since they may stand elsewhere in the prompt and may be escaped. So
the conversation's outline is rendered once with words of our own, and each of them must come out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixquant_agents.engine.base import JsonObject

__all__ = ["CANONICAL", "PROBE_TOOL", "Outline", "lost", "outline"]

PROBE_TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "zqtoolzq",
        "description": "zqaboutzq",
        "parameters": {
            "type": "object",
            "properties": {"zqparamzq": {"type": "string", "description": "zqmeaningzq"}},
            "required": ["zqparamzq"],
        },
    },
}
_TOOL_WORDS = {"zqtoolzq": "a tool's name", "zqaboutzq": "a tool's description", "zqparamzq": "a tool's parameter"}


@dataclass(frozen=True, slots=True)
class Outline:
    """A conversation with words of our own.

    Attributes:
        messages: the same roles, calls and ids.
        words: each word that must be in the prompt → what it stands for.
    """

    messages: list[dict[str, Any]]
    words: dict[str, str]


def outline(messages: Sequence[dict[str, Any]]) -> Outline:
    """The outline of messages as ``plain_messages`` gives them."""
    words: dict[str, str] = {}
    names: dict[Any, str] = {}
    ids: dict[Any, Any] = {}
    filled = []
    for index, message in enumerate(messages):
        entry = dict(message)
        role = message["role"]
        if message["content"].strip():
            entry["content"] = f"zqtext{index}zq"
            words[entry["content"]] = f"message {index} ({role})"
        if message.get("reasoning_content"):
            entry["reasoning_content"] = f"zqthought{index}zq"
        calls = []
        for number, call in enumerate(message.get("tool_calls") or ()):
            at = f"{index}x{number}zq"
            name, key, value = f"zqname{at}", f"zqkey{at}", f"zqvalue{at}"
            what = f"the call of {call['function']['name']!r} in message {index}"
            words |= {name: what, key: what, value: what}
            old = call.get("id")
            names[old] = name
            # an id may carry the function's name, for templates that write it in the name's place
            ids[old] = old.replace(call["function"]["name"], name) if isinstance(old, str) and ":" in old else old
            calls.append({**call, "id": ids[old], "function": {"name": name, "arguments": f'{{"{key}": "{value}"}}'}})
        if calls:
            entry["tool_calls"] = calls
        if "tool_call_id" in message and message["tool_call_id"] in ids:
            entry["tool_call_id"] = ids[message["tool_call_id"]]
        if role == "tool" and message.get("name"):
            entry["name"] = names.get(message.get("tool_call_id"), f"zqname{index}zq")
        filled.append(entry)
    return Outline(filled, words)


def lost(text: str, words: dict[str, str], *, tools: bool) -> str | None:
    """What is not in the prompt, or is there in a form that no model writes; ``None`` where all is well.

    Args:
        text: the rendered outline.
        words: of the outline.
        tools: whether ``PROBE_TOOL`` was given.
    """
    for word, what in ({**words, **_TOOL_WORDS} if tools else words).items():
        if word not in text:
            return what
    mangled = _MANGLED.search(text)
    if mangled is not None:
        return next((what for word, what in words.items() if word in mangled.group()), "a call's arguments")
    return None


_MANGLED = re.compile(r"""\{'zqkey\w+'|\\"zqkey\w+\\"|\bNone\s*(?=\W*zqname)""")
"""Arguments as a Python dict, or as JSON inside a JSON string; the content ``None`` in front of a call."""

CANONICAL: list[dict[str, Any]] = [
    {"role": "user", "content": "question"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_0a1b2c3d4e5f6a7b8c9d0e1f",
                "type": "function",
                "function": {"name": "f", "arguments": "{}"},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0a1b2c3d4e5f6a7b8c9d0e1f", "content": "result"},
    {"role": "assistant", "content": "answer"},
    {"role": "user", "content": "question"},
]
"""The conversation that decides once who writes a model's tools, so that the prompt's beginning never changes hands."""

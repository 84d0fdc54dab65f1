"""The text around the point where a prompt diverged from the one before; only where content recording kept both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixquant_agents.telemetry.events import TurnContent

__all__ = ["Divergence", "diverging_text"]

AROUND = 160
"""Characters shown before and after the point."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """``shared``: the end of what both have in common; ``before``, ``after``: how the old and the new prompt go on."""

    shared: str
    before: str
    after: str


def diverging_text(old: TurnContent | None, new: TurnContent | None) -> Divergence | None:
    """``None`` where a side was not recorded, or where the new prompt only appends to the old one.

    Rendered prompts are compared when both are known, else the messages written one after the other.
    """
    if old is None or new is None:
        return None
    if old.prompt_text is not None and new.prompt_text is not None:
        old_text, new_text = old.prompt_text, new.prompt_text
    else:
        old_text, new_text = _flat(old), _flat(new)
    point = _shared_length(old_text, new_text)
    if point == len(old_text):
        return None
    return Divergence(
        old_text[max(0, point - AROUND) : point], old_text[point : point + AROUND], new_text[point : point + AROUND]
    )


def _shared_length(old_text: str, new_text: str) -> int:
    """Length of the common beginning, by bisection: slices compare at the speed of memory."""
    low, high = 0, min(len(old_text), len(new_text))
    while low < high:
        middle = (low + high + 1) // 2
        if old_text.startswith(new_text[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low


def _flat(content: TurnContent) -> str:
    # What was recorded came from models, tools and users, and may be malformed.
    return "".join(
        f"[{message.get('role', '?')}] {_text(message)}\n" if isinstance(message, Mapping) else f"{message}\n"
        for message in content.messages
    )


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    calls = message.get("tool_calls")
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return text + (json.dumps(calls, ensure_ascii=False, default=str) if calls else "")

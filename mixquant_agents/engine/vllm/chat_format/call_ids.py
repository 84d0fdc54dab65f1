"""Ids of tool calls in the form that a family's template accepts, the same on a call and on its result.

Ids come from this library, from other servers and from other models' histories. A new id depends on the old one and on
the calls before it, so a conversation that grows keeps the ids of its beginning.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["IdForm", "with_ids"]

IdForm = Literal["given", "nine", "indexed"]
"""``given``: as they are. ``nine``: nine letters or digits (Mistral). ``indexed``: ``functions.<name>:<n>``, where the
template writes the id in the name's place (Kimi)."""

_NINE = re.compile(r"[a-zA-Z0-9]{9}")
_INDEXED = re.compile(r"functions\..+:\d+")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def with_ids(messages: Sequence[dict[str, Any]], form: IdForm) -> list[dict[str, Any]]:
    """The messages with every call's id in ``form``, and every result's. Ids that fit already stay.

    A result without an id answers the first call that has no result yet.
    """
    if form == "given":
        return list(messages)
    taken = {call.get("id") for message in messages for call in message.get("tool_calls", ()) if _fits(call, form)}
    waiting: dict[Any, deque[str]] = defaultdict(deque)
    last: dict[Any, str] = {}
    order: deque[tuple[Any, str]] = deque()
    changed, number = [], 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                old = call.get("id")
                new = str(old) if _fits(call, form) else _new(old, call["function"]["name"], number, form, taken)
                taken.add(new)
                waiting[old].append(new)
                last[old] = new
                order.append((old, new))
                calls.append({**call, "id": new})
                number += 1
            changed.append({**message, "tool_calls": calls})
        elif message.get("role") == "tool":
            old = message.get("tool_call_id")
            if not old and order:
                old, new = order.popleft()
                waiting[old].remove(new)
            elif waiting[old]:
                new = waiting[old].popleft()
                order.remove((old, new))
            else:
                new = last.get(old) or _new(old, str(message.get("name") or "unknown"), number, form, set())
            changed.append({**message, "tool_call_id": new})
        else:
            changed.append(message)
    return changed


def _fits(call: dict[str, Any], form: IdForm) -> bool:
    pattern = _NINE if form == "nine" else _INDEXED
    return isinstance(call.get("id"), str) and pattern.fullmatch(call["id"]) is not None


def _new(old: Any, name: str, number: int, form: IdForm, taken: set[Any]) -> str:
    if form == "indexed":
        return f"functions.{name}:{number}"
    seed = f"{number}:{name}" if not old else str(old)
    if _NINE.fullmatch(seed) and seed not in taken:
        return seed
    for attempt in range(len(taken) + 1):
        digest = int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode(errors="replace")).digest(), "big")
        new = ""
        for _ in range(9):
            digest, digit = divmod(digest, len(_ALPHABET))
            new += _ALPHABET[digit]
        if new not in taken:
            return new
    raise AssertionError("unreachable: there are more attempts than ids taken")

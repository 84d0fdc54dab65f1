"""Tool calls of one answer: which are complete, and how one that is not is kept from looking complete.

LangChain repairs half a JSON object when it merges chunks: an answer cut off inside ``{"path": "/tmp/a`` would become
the call ``{"path": "/tmp/a"}`` and be run. What the model did not finish must end in ``invalid_tool_calls``, so such
arguments are *sealed* with a bracket that closes nothing, which LangChain's parser refuses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from mixquant_agents.engine.hermes import new_call_id
from mixquant_agents.engine.protocol import ToolCallDelta

__all__ = ["CallBook", "seal"]


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)


class CallBook:
    """The calls of one answer, in order, as their pieces arrive."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools called, in order."""
        return tuple(call.name for _, call in sorted(self._calls.items()))

    @property
    def next_index(self) -> int:
        """An index that no call has."""
        return max(self._calls, default=-1) + 1

    def take(self, delta: ToolCallDelta) -> ToolCallDelta:
        """Note a piece; returns it as it goes out: a call's first piece has its id, later ones neither id nor name."""
        call = self._calls.get(delta.index)
        if call is None:
            call = self._calls[delta.index] = _Call(delta.id or new_call_id(), delta.name or "")
            out = ToolCallDelta(delta.index, call.id, call.name, delta.arguments)
        else:
            late_name = delta.name if delta.name and not call.name else None
            call.name = call.name or delta.name or ""
            out = ToolCallDelta(delta.index, None, late_name, delta.arguments)
        if delta.arguments:
            call.pieces.append(delta.arguments)
        return out

    def listed(self) -> list[dict[str, str]]:
        """``{"id", "name", "arguments"}`` of every call, in order; ``arguments`` is the text as the model wrote it."""
        return [
            {"id": call.id, "name": call.name, "arguments": "".join(call.pieces)}
            for _, call in sorted(self._calls.items())
        ]

    def seals(self) -> list[tuple[int, dict[str, str], str]]:
        """``(index, call with its "error", what must follow its arguments)`` of every call that is no valid one."""
        found = []
        for (index, _), call in zip(sorted(self._calls.items()), self.listed(), strict=True):
            reason = _why_invalid(call["arguments"])
            if reason is not None:
                found.append((index, {**call, "error": reason}, seal(call["arguments"], always=reason is _TOO_DEEP)))
        return found


_TOO_DEEP = "the arguments are nested too deeply to be read"


def _why_invalid(arguments: str) -> str | None:
    if not arguments.strip():
        return "the arguments are missing: the answer ended inside the call"
    try:
        value = json.loads(arguments, strict=False)
    except ValueError as error:
        return f"the arguments are not valid JSON: {error}"
    except RecursionError:
        return _TOO_DEEP
    return None if isinstance(value, dict) else f"the arguments are {type(value).__name__}, not an object"


def seal(text: str, *, always: bool = False) -> str:
    """What must follow ``text`` so that LangChain's lenient JSON parser refuses it; empty where it does so anyway.

    ``always``: seal complete JSON too.
    """
    stack: list[str] = []
    inside = escaped = False
    for char in text:
        if inside:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside = False
        elif char == '"':
            inside = True
        elif char in "{[":
            stack.append("}" if char == "{" else "]")
        elif char in "}]" and (not stack or stack.pop() != char):
            return ""
    if text.strip() and not (stack or inside or always):
        return ""
    quote = '""' if escaped else '"' if inside else ""
    return quote + ("}" if stack and stack[-1] == "]" else "]")

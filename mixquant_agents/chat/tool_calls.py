"""Tool calls of one answer: which are valid, and how one that is not is kept from looking valid.

A call is valid iff its arguments are a JSON object and its name is a bound tool's. LangChain judges by its own rule
when it merges chunks: it repairs half a JSON object, drops what stands behind a whole one, reads no arguments as ``{}``
and takes any name. An answer cut off inside ``{"path": "/tmp/a`` would become the call ``{"path": "/tmp/a"}`` and be
run. So the arguments of an invalid call are *sealed* with a bracket that closes nothing, which LangChain's parser
refuses; the call then stands in ``invalid_tool_calls``.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from mixquant_agents.engine.base import ToolCallDelta, new_call_id
from mixquant_agents.unicode import SurrogateJoiner, well_formed

__all__ = ["ToolCallAccumulator", "seal"]


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)
    surrogates: SurrogateJoiner = field(default_factory=SurrogateJoiner)


class ToolCallAccumulator:
    """The calls of one answer, in order, as their pieces arrive.

    Args:
        tools: names of the bound tools.
    """

    def __init__(self, tools: Collection[str] = ()) -> None:
        self._tools = tools
        self._calls: dict[int, _Call] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools called, in order; nameless calls have none."""
        return tuple(call.name for _, call in sorted(self._calls.items()) if call.name)

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def next_index(self) -> int:
        """An index that no call has."""
        return max(self._calls, default=-1) + 1

    def take(self, delta: ToolCallDelta) -> ToolCallDelta:
        """Note a piece; returns it as it goes out: a call's first piece has its id, later ones neither id nor name."""
        call = self._calls.get(delta.index)
        name = well_formed(delta.name or "")
        if call is None:
            call = self._calls[delta.index] = _Call(well_formed(delta.id or new_call_id()), name)
            out_id: str | None = call.id
            out_name: str | None = name
        else:
            out_id, out_name = None, name if name and not call.name else None
            call.name = call.name or name
        arguments = call.surrogates.feed(delta.arguments)
        if arguments:
            call.pieces.append(arguments)
        return ToolCallDelta(delta.index, out_id, out_name, arguments)

    def listed(self) -> list[dict[str, str]]:
        """``{"id", "name", "arguments"}`` of every call, in order; ``arguments`` is the text as the model wrote it."""
        return [
            {"id": call.id, "name": call.name, "arguments": "".join(call.pieces)}
            for _, call in sorted(self._calls.items())
        ]

    def seals(self) -> list[tuple[int, dict[str, str], str]]:
        """``(index, call with its "error", what must follow its arguments)`` of every call that is not valid."""
        invalid = []
        for (index, _), call in zip(sorted(self._calls.items()), self.listed(), strict=True):
            reason = self._why_invalid(call["name"], call["arguments"])
            if reason is not None:
                invalid.append((index, {**call, "error": reason}, seal(call["arguments"])))
        return invalid

    def _why_invalid(self, name: str, arguments: str) -> str | None:
        if not name:
            return "the call names no tool"
        if name not in self._tools:
            return f"there is no tool {name!r}; the tools are {', '.join(self._tools) or 'none'}"
        if not arguments.strip():
            return "the arguments are missing: the answer ended inside the call"
        try:
            value = json.loads(arguments, strict=False)
        except ValueError as error:
            return f"the arguments are not valid JSON: {error}"
        except RecursionError:
            return "the arguments are nested too deeply to be read"
        return None if isinstance(value, dict) else f"the arguments are {type(value).__name__}, not an object"


def seal(text: str) -> str:
    """What must follow ``text`` so that LangChain's lenient JSON parser refuses it, whatever it holds.

    That parser gives up at the first bracket, outside strings, that closes nothing. Empty where ``text`` has one.
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
    quote = '""' if escaped else '"' if inside else ""
    return quote + ("}" if stack and stack[-1] == "]" else "]")

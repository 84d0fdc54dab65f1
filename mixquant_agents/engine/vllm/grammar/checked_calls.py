"""Calls that were promised to follow a schema, checked where the grammar could not hold it altogether."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from mixquant_agents.engine.base import Delta, JsonObject, ToolCallDelta
from mixquant_agents.engine.json_schema import violation
from mixquant_agents.engine.parsing import OutputParser, TokenDelta

__all__ = ["CheckedCalls"]


@dataclass(slots=True)
class _Call:
    first: ToolCallDelta
    arguments: list[str] = field(default_factory=list)


class CheckedCalls:
    """A parser whose calls of certain tools come out whole: as a call where its arguments satisfy the tool's schema,
    as an invalid one, with the reason, where they do not.

    Args:
        parser: what reads the answer.
        schemas: gives the parameters of the tools to check, by name; asked for with the first call, when the engine has
            long read them for its grammar.
    """

    def __init__(self, parser: OutputParser, schemas: Callable[[], Mapping[str, JsonObject]]) -> None:
        self._parser = parser
        self._schemas = functools.cache(schemas)
        self._held: dict[int, _Call] = {}

    def feed(self, delta: TokenDelta) -> Delta:
        """See :class:`OutputParser`."""
        return self._without_held(self._parser.feed(delta))

    def finish(self) -> Delta:
        """See :class:`OutputParser`."""
        out = self._without_held(self._parser.finish())
        calls, invalid = list(out.tool_calls), list(out.invalid_calls)
        for call in self._held.values():
            name, arguments = str(call.first.name), "".join(call.arguments)
            problem = _problem(self._schemas()[name], arguments)
            if problem is None:
                calls.append(replace(call.first, arguments=arguments))
            else:
                text = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'
                invalid.append((text, f"the arguments of {name!r} do not follow its schema: {problem}"))
        self._held.clear()
        return replace(out, tool_calls=tuple(calls), invalid_calls=tuple(invalid))

    def _without_held(self, out: Delta) -> Delta:
        passed = []
        for piece in out.tool_calls:
            if piece.name is not None and piece.name in self._schemas():
                self._held.setdefault(piece.index, _Call(piece))
            if (call := self._held.get(piece.index)) is not None:
                call.arguments.append(piece.arguments)
            else:
                passed.append(piece)
        return out if len(passed) == len(out.tool_calls) else replace(out, tool_calls=tuple(passed))


def _problem(schema: JsonObject, arguments: str) -> str | None:
    """Why a complete call breaks its schema. What is no JSON object is for the reader of the calls to judge."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return violation(schema, value) if isinstance(value, dict) else None

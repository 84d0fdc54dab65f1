"""Server-sent events of a chat completion: bytes → the JSON of each event. Whatever is no event is kept for an error.

Bytes are split, not text: a line separator of Unicode (U+2028, …) may stand in a JSON string and ends no line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["DONE", "EventReader", "Unreadable"]

_LINE_END = re.compile(rb"\r\n|\n|\r(?!$)")
"""A ``\\r`` at the end of a block may be half of ``\\r\\n``."""
_KEPT_BYTES = 2_000


class Unreadable(str):
    """An event that is no JSON."""

    __slots__ = ()


class _Done:
    """The type of :data:`DONE`."""


DONE = _Done()
"""The event ``[DONE]``, by which a server says that it has said all."""


class EventReader:
    """Reads one response body.

    Attributes:
        beginning: the first bytes of the body.
    """

    def __init__(self) -> None:
        self.beginning = b""
        self._rest = b""
        self._data: list[bytes] = []
        self._name = b""

    def feed(self, block: bytes) -> Iterator[Any]:
        """The events that are complete with ``block``: parsed JSON, :data:`DONE`, or :class:`Unreadable`."""
        if len(self.beginning) < _KEPT_BYTES:
            self.beginning += block[: _KEPT_BYTES - len(self.beginning)]
        *lines, self._rest = _LINE_END.split(self._rest + block)
        for line in lines:
            yield from self._line(line)

    def finish(self) -> Iterator[Any]:
        """The last event, where no empty line follows it."""
        rest, self._rest = self._rest, b""
        yield from self._line(rest.removesuffix(b"\r"))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[Any]:
        if line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif field == b"event":
                self._name = value.strip()
            return
        data, name = b"\n".join(self._data), self._name
        self._data, self._name = [], b""
        if data.strip():
            yield _event(name, data.decode("utf-8", "replace"))


def _event(name: bytes, data: str) -> Any:
    if data.strip() == "[DONE]":
        return DONE
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return Unreadable(data) if name != b"error" else {"error": data}
    if name == b"error" and not (isinstance(value, dict) and value.get("error")):
        return {"error": value}
    return value

"""The body of a chat completion: bytes → the JSON of each event. Whatever is no event is kept for an error.

Servers and proxies mix up their forms, and the content type does not tell: server-sent events come as
``application/json``, one JSON object as ``text/event-stream``, or an object a line. So the lines tell: no field of
server-sent events begins with a bracket.

Bytes are split, not text: a line separator of Unicode (U+2028, …) may stand in a JSON string and ends no line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

__all__ = ["DONE", "EventReader", "Unreadable"]

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = "\ufeff".encode()
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
        torn: what the body's end left of an event in the middle of it; ``None`` where the last one is whole.
    """

    def __init__(self) -> None:
        self.beginning = b""
        self.torn: Unreadable | None = None
        self._rest: list[bytes] = []
        """The line that is not complete yet, in pieces."""
        self._half_end = b""
        """A ``\\r`` at the end of a block, which may be half of ``\\r\\n``."""
        self._data: list[bytes] = []
        self._name = b""
        self._plain: list[bytes] = []
        """Lines of JSON that is no event, from its first line on."""
        self._fresh = True

    def feed(self, block: bytes) -> Iterator[Any]:
        """The events that are complete with ``block``: parsed JSON, :data:`DONE`, or :class:`Unreadable`."""
        if len(self.beginning) < _KEPT_BYTES:
            self.beginning += block[: _KEPT_BYTES - len(self.beginning)]
        block = self._half_end + block
        self._half_end = b"\r" if block.endswith(b"\r") else b""
        first, *others = _LINE_END.split(block.removesuffix(b"\r"))
        self._rest.append(first)
        for other in others:
            line, self._rest = b"".join(self._rest), [other]
            yield from self._line(line)

    def finish(self) -> Iterator[Any]:
        """The last event, where no empty line follows it."""
        rest, self._rest = b"".join(self._rest), []
        for event in (*self._line(rest), *self._line(b""), *self._whole()):
            if isinstance(event, Unreadable):
                self.torn = event
            yield event

    @property
    def has_begun(self) -> bool:
        """Whether the body is of server-sent events, were it comments alone, by which a server keeps a connection."""
        return self.beginning.removeprefix(_BYTE_ORDER_MARK).startswith((b":", b"data:", b"event:", b"id:", b"retry:"))

    def _line(self, line: bytes) -> Iterator[Any]:
        if self._fresh:
            line, self._fresh = line.removeprefix(_BYTE_ORDER_MARK), False
        if self._plain and line.startswith(b"data:"):  # no line of JSON begins so
            yield from self._whole()
        if self._plain:
            self._plain.append(line)
        elif not self._data and line.lstrip()[:1] in (b"{", b"["):
            event = _event(b"", line.decode("utf-8", "replace"))
            if isinstance(event, Unreadable):  # the first line of several
                self._plain.append(line)
            else:
                yield event
        elif line:
            field, _, value = line.partition(b":")
            if field == b"data":
                self._data.append(value.removeprefix(b" "))
            elif field == b"event":
                self._name = value.strip()
        else:
            data, name = b"\n".join(self._data), self._name
            self._data, self._name = [], b""
            if data.strip():
                yield _event(name, data.decode("utf-8", "replace"))

    def _whole(self) -> Iterator[Any]:
        plain, self._plain = b"\n".join(self._plain), []
        if plain:
            yield _event(b"", plain.decode("utf-8", "replace"))


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

"""Finds where one JSON value ends while its text is still arriving. Looks at each character once."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["MARKER_STARTS", "ValueScanner"]

MARKER_STARTS = "<`"
"""Characters with which markers begin, and which JSON has in strings alone."""

_IN_STRING = re.compile(r'[\\"]')
_OUTSIDE = re.compile(rf'["{{}}\[\]{MARKER_STARTS}]')
_LITERAL_END = re.compile(rf'[\s,}}\]:{{\["{MARKER_STARTS}]')


class ValueScanner:
    """Scans one JSON value (object, array, string or literal) that arrives in pieces.

    It balances brackets and strings and checks nothing else: a value that it lets pass may still be invalid JSON.

    Attributes:
        container: the value is an object or an array (known after the first :meth:`feed`).
        done: the value has ended.
    """

    __slots__ = ("_depth", "_escaped", "_in_string", "_kept", "_literal", "_started", "container", "done")

    def __init__(self) -> None:
        self._depth = 0
        self._escaped = self._in_string = self._literal = self._started = False
        self._kept: list[str] = []
        self.container = False
        self.done = False

    @property
    def text(self) -> str:
        """The pieces given to :meth:`keep`."""
        return "".join(self._kept)

    def keep(self, piece: str) -> None:
        """Remember a piece of the value's text."""
        self._kept.append(piece)

    def value(self) -> Any:
        """The value of the kept text; ``None`` where that is not JSON."""
        try:
            return json.loads(self.text, strict=False)
        except (ValueError, RecursionError):
            return None

    def feed(self, text: str, at: int) -> int:
        """Scan ``text`` from ``at`` (the first time: the value's first character); returns the index after the last
        character of the value. A character of ``MARKER_STARTS`` outside strings is never
        JSON: the scan stops before it."""
        if not self._started:
            self._started = True
            self.container = text[at] in "{["
            self._literal = not self.container and text[at] != '"'
        if self._literal:
            end = _LITERAL_END.search(text, at)
            self.done = end is not None
            return len(text) if end is None else end.start()
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_IN_STRING if self._in_string else _OUTSIDE).search(text, at)
            if match is None:
                return len(text)
            char, at = match.group(), match.end()
            if char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = not self._in_string
            elif char in MARKER_STARTS:
                return at - 1
            else:
                self._depth += 1 if char in "{[" else -1
            if self._depth <= 0 and not self._in_string and not self._escaped:
                self.done = True
                return at
        return at

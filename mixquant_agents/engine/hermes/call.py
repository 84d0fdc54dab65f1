"""One call of an answer: a JSON object that is read by members while it arrives."""

from __future__ import annotations

import re
from collections.abc import Callable

from mixquant_agents.engine.base import ToolCallDelta
from mixquant_agents.engine.hermes.json_scan import MARKER_STARTS, ValueScanner

__all__ = ["JsonCall", "Pieces"]

_VISIBLE = re.compile(r"\S")
_STOP = re.compile(f"[{MARKER_STARTS}]")


class Pieces:
    """What one feed gives out."""

    __slots__ = ("calls", "content", "reasoning")

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ToolCallDelta] = []


class JsonCall:
    """The JSON object of one call, read by members: ``name`` is given out when complete, ``arguments`` as they come."""

    def __init__(self, index: int, new_id: Callable[[], str]) -> None:
        self._index, self._new_id = index, new_id
        self._raw: list[str] = []
        self._scanner: ValueScanner | None = None
        self._state = "open"
        self._key = ""
        self._name: str | None = None
        self._early: list[str] = []
        self._has_arguments = False
        self._reason = "no function name"
        self._broken: list[str] = []
        """The text from where the object stopped to be one."""

    @property
    def untouched(self) -> bool:
        """Nothing of the object has come yet."""
        return self._state == "open" and not self._raw

    @property
    def complete(self) -> bool:
        """The object has ended, and it was a call."""
        return self._state == "done" and self._name is not None

    @property
    def raw(self) -> str:
        """The text since the opening marker."""
        return "".join(self._raw).strip("\n")

    def feed(self, text: str, at: int, out: Pieces) -> int:
        """Read on from ``at``; returns where it stopped: at a character outside strings with which a marker may begin,
        at anything visible behind a complete call, or at the end of ``text``."""
        start = at
        while at < len(text) and not (self._scanner is None and text[at] in MARKER_STARTS):
            if self._scanner is not None:
                before, scanner = at, self._scanner
                at = scanner.feed(text, at)
                self._take(scanner, text[before:at], out)
                if not scanner.done:
                    break
            elif self.complete:
                seen = _VISIBLE.search(text, at)
                at = len(text) if seen is None else seen.start()
                break
            elif self._state in ("done", "broken"):
                before, stop = at, _STOP.search(text, at)
                at = len(text) if stop is None else stop.start()
                if self._broken:
                    self._broken.append(text[before:at])
            else:
                at = self._between(text, at)
        if at > start:
            self._raw.append(text[start:at])
        return at

    def stray(self, char: str, out: Pieces) -> None:
        """A character that is neither JSON nor a marker: it stays in the text, which is then no JSON."""
        self._raw.append(char)
        if self._scanner is not None:
            self._take(self._scanner, char, out)
        elif self._broken:
            self._broken.append(char)
        elif self._state not in ("done", "comma"):
            self._break(char)

    def close(self, out: Pieces, *, ended: bool) -> str | None:
        """The call is over; ``None``, or why it is none. A whole call without arguments gets ``{}``."""
        if self._name is None:
            return self._reason
        if self._broken and self._has_arguments:  # the reader of the arguments sees what made the object none
            self._arguments("".join(self._broken), out)
        elif not self._has_arguments and self._state in (("done",) if ended else ("done", "comma")):
            self._arguments("{}", out)
        elif not self._has_arguments:
            self._arguments("".join(self._raw), out)
        return None

    def _between(self, text: str, at: int) -> int:
        """One character between two values; returns where to go on (a value begins at its own first character)."""
        char = text[at]
        if char.isspace():
            return at + 1
        match self._state, char:
            case "open", "{":
                self._state = "key"
            case (("key" | "comma"), "}"):
                self._state = "done"
            case "comma", ",":
                self._state = "key"
            case "colon", ":":
                self._state = "value"
            case ("key", '"') | ("value", _) if char not in ",:}]":
                self._scanner = ValueScanner()
                return at
            case _:
                self._break(char)
        return at + 1

    def _break(self, char: str) -> None:
        self._state, self._reason = "broken", f"not the JSON object of a call: unexpected {char!r}"
        self._broken.append(char)

    def _take(self, scanner: ValueScanner, piece: str, out: Pieces) -> None:
        """A piece of the value being scanned, and what follows when it is complete."""
        arguments = self._state == "value" and self._key in ("arguments", "parameters")
        if arguments and scanner.container:
            self._arguments(piece, out)
        else:
            scanner.keep(piece)
        if not scanner.done:
            return
        self._scanner = None
        if self._state == "key":
            self._key, self._state = str(scanner.value()), "colon"
            return
        self._state = "comma"
        if arguments and not scanner.container:  # some models write the arguments as a JSON string
            value = scanner.value()
            self._arguments(value if isinstance(value, str) else "{}" if scanner.text == "null" else scanner.text, out)
        elif self._key in ("name", "tool_name") and self._name is None:
            self._give_name(scanner.value(), out)

    def _give_name(self, value: object, out: Pieces) -> None:
        if not isinstance(value, str) or not value:
            self._state, self._reason = "broken", f"the function name is {value!r}"
            return
        self._name = value
        out.calls.append(ToolCallDelta(self._index, self._new_id(), value, "".join(self._early)))

    def _arguments(self, piece: str, out: Pieces) -> None:
        self._has_arguments = True
        if self._name is None:
            self._early.append(piece)
        elif piece:
            out.calls.append(ToolCallDelta(self._index, arguments=piece))

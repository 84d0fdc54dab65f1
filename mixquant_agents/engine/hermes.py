"""Incremental parser of Hermes-style answers: text, ``<think>`` reasoning and ``<tool_call>`` JSON.

::

    <think>
    reasoning
    </think>

    text
    <tool_call>
    {"name": "f", "arguments": {"a": 1}}
    </tool_call>

Every character is looked at once, so the cost is linear in the answer. A call's name is given out as soon as it is
complete, its arguments as they arrive, unchanged: whether they are valid JSON is for the reader of the deltas to judge.
What never became a call (no name) ends in ``invalid_calls``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from mixquant_agents.engine.jsonscan import ValueScanner
from mixquant_agents.engine.protocol import OutputDelta, TokenDelta, ToolCallDelta

__all__ = ["CALL_CLOSE", "CALL_OPEN", "THINK_CLOSE", "THINK_OPEN", "HermesParser", "new_call_id"]

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_VISIBLE = re.compile(r"\S")


def new_call_id() -> str:
    """A tool-call id that no other call of the conversation has."""
    return f"call_{uuid.uuid4().hex[:24]}"


class HermesParser:
    """The :class:`~mixquant_agents.engine.protocol.OutputParser` of one answer.

    Args:
        tools: whether calls may occur; without them ``<tool_call>`` is text.
        reasoning: whether a ``<think>`` block may open the answer; without it ``<think>`` is text.
        new_id: where the ids of calls come from (Hermes text has none).
    """

    def __init__(self, *, tools: bool = True, reasoning: bool = True, new_id: Callable[[], str] = new_call_id) -> None:
        self._tools = tools
        self._new_id = new_id
        self._held = ""
        """Text that may belong to a marker, or to the white space around one; bounded except for white space."""
        self._start = reasoning
        """Nothing but white space yet: a ``<think>`` may follow."""
        self._thinking = False
        self._drop_newline = False
        """The newline after ``<think>`` belongs to the marker."""
        self._lead = False
        """White space after ``</think>`` belongs to the marker."""
        self._gap = False
        """White space after a call counts only if text follows."""
        self._call: _Call | None = None
        self._named = 0
        self._invalid: list[tuple[str, str]] = []
        self._plain = False

    def feed(self, delta: TokenDelta) -> OutputDelta:
        """What became certain with ``delta``. Reasoning and calls that come parsed are passed on."""
        text = delta.text
        if self._plain and "<" not in text and text[-1:] != "\n":
            return OutputDelta(text, delta.reasoning, delta.tool_calls)
        out = _Pieces()
        text = self._held + text
        self._held = ""
        at = 0
        while at < len(text):
            if self._call is not None:
                at = self._in_call(self._call, text, at, out)
            elif self._thinking:
                at = self._in_thought(text, at, out)
            else:
                at = self._in_text(text, at, out)
        waiting = self._held or self._start or self._thinking or self._lead or self._gap or self._call
        self._plain = not waiting
        return OutputDelta(
            "".join(out.content), delta.reasoning + "".join(out.reasoning), (*delta.tool_calls, *out.calls)
        )

    def finish(self) -> OutputDelta:
        """What was held back: half a marker is text, half a call stays as it is or is invalid."""
        held, self._held = self._held, ""
        if self._call is not None:
            self._close(self._call, held, None)
            held = ""
        elif self._gap and (not held or held.isspace()):
            held = ""
        return OutputDelta(
            "" if self._thinking else held, held if self._thinking else "", invalid_calls=tuple(self._invalid)
        )

    def _in_text(self, text: str, at: int, out: _Pieces) -> int:
        if self._start or self._lead:
            seen = _VISIBLE.search(text, at)
            if seen is None:
                self._held = text[at:] if self._start else ""
                return len(text)
            if self._lead:
                at, self._lead = seen.start(), False
            else:
                head = text[seen.start() : seen.start() + len(THINK_OPEN)]
                if head != THINK_OPEN and THINK_OPEN.startswith(head):
                    self._held = text[at:]
                    return len(text)
                self._start = False
                if head == THINK_OPEN:
                    self._thinking = self._drop_newline = True
                    return seen.start() + len(THINK_OPEN)
        if not self._tools:
            out.content.append(text[at:])
            return len(text)
        opens = text.find(CALL_OPEN, at)
        if opens >= 0:
            before = text[at:opens]
            if not (self._gap and before.isspace()):
                out.content.append(before.removesuffix("\n"))
            self._gap = False
            self._call = _Call(self._named, self._new_id)
            return opens + len(CALL_OPEN)
        keep = _certain(text, at, CALL_OPEN)
        if self._gap and (keep == at or text[at:keep].isspace()):
            keep = at
        else:
            self._gap = False
        out.content.append(text[at:keep])
        self._held = text[keep:]
        return len(text)

    def _in_thought(self, text: str, at: int, out: _Pieces) -> int:
        if self._drop_newline:
            self._drop_newline = False
            at += text[at] == "\n"
        closes = text.find(THINK_CLOSE, at)
        if closes >= 0:
            out.reasoning.append(text[at:closes].removesuffix("\n"))
            self._thinking, self._lead = False, True
            return closes + len(THINK_CLOSE)
        keep = _certain(text, at, THINK_CLOSE)
        out.reasoning.append(text[at:keep])
        self._held = text[keep:]
        return len(text)

    def _in_call(self, call: _Call, text: str, at: int, out: _Pieces) -> int:
        at = call.feed(text, at, out)
        if at == len(text):
            return at
        if text.startswith(CALL_CLOSE, at):
            self._close(call, "", out)
            return at + len(CALL_CLOSE)
        if len(text) - at < len(CALL_CLOSE) and CALL_CLOSE.startswith(text[at:]):
            self._held = text[at:]
            return len(text)
        call.stray(text[at], out)
        return at + 1

    def _close(self, call: _Call, tail: str, out: _Pieces | None) -> None:
        """The call ends: by its marker, or (``out`` is ``None``) because the answer does."""
        self._call, self._gap = None, True
        reason = call.close(out)
        if reason is not None:
            self._invalid.append((call.raw + tail, reason if out else f"{reason} before the answer ended"))
        else:
            self._named += 1


class _Pieces:
    """What one feed gives out."""

    __slots__ = ("calls", "content", "reasoning")

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ToolCallDelta] = []


class _Call:
    """The JSON object of one call, read by members: ``name`` is given out when complete, ``arguments`` as they come."""

    def __init__(self, index: int, new_id: Callable[[], str]) -> None:
        self._index, self._new_id = index, new_id
        self._raw: list[str] = []
        self._scanner: ValueScanner | None = None
        self._place = "open"
        self._key = ""
        self._name: str | None = None
        self._early: list[str] = []
        self._has_arguments = False
        self._reason = "no function name"

    @property
    def raw(self) -> str:
        """The text since the opening marker."""
        return "".join(self._raw).strip("\n")

    def feed(self, text: str, at: int, out: _Pieces) -> int:
        """Read on from ``at``; returns where it stopped: at a ``<`` outside strings, or at the end of ``text``."""
        start = at
        while at < len(text) and not (self._scanner is None and text[at] == "<"):
            if self._scanner is not None:
                before, scanner = at, self._scanner
                at = scanner.feed(text, at)
                self._take(scanner, text[before:at], out)
                if not scanner.done:
                    break
            elif self._place in ("done", "broken"):
                stop = text.find("<", at)
                at = len(text) if stop < 0 else stop
            else:
                at = self._between(text, at)
        self._raw.append(text[start:at])
        return at

    def stray(self, char: str, out: _Pieces) -> None:
        """A character that is neither JSON nor a marker: it stays in the text, which is then no JSON."""
        self._raw.append(char)
        if self._scanner is not None:
            self._take(self._scanner, char, out)
        elif self._place not in ("done", "comma"):
            self._break(char)

    def close(self, out: _Pieces | None) -> str | None:
        """The call has ended; ``None``, or why it is none. A complete call without arguments gets ``{}``."""
        if self._name is None:
            return self._reason
        if out is not None and not self._has_arguments and self._place in ("done", "comma"):
            self._arguments("{}", out)
        return None

    def _between(self, text: str, at: int) -> int:
        """One character between two values; returns where to go on (a value begins at its own first character)."""
        char = text[at]
        if char.isspace():
            return at + 1
        match self._place, char:
            case "open", "{":
                self._place = "key"
            case (("key" | "comma"), "}"):
                self._place = "done"
            case "comma", ",":
                self._place = "key"
            case "colon", ":":
                self._place = "value"
            case ("key", '"') | ("value", _) if char not in ",:}]":
                self._scanner = ValueScanner()
                return at
            case _:
                self._break(char)
        return at + 1

    def _break(self, char: str) -> None:
        self._place, self._reason = "broken", f"not the JSON object of a call: unexpected {char!r}"

    def _take(self, scanner: ValueScanner, piece: str, out: _Pieces) -> None:
        """A piece of the value being scanned, and what follows when it is complete."""
        arguments = self._place == "value" and self._key in ("arguments", "parameters")
        if arguments and scanner.container:
            self._arguments(piece, out)
        else:
            scanner.keep(piece)
        if not scanner.done:
            return
        self._scanner = None
        if self._place == "key":
            self._key, self._place = str(scanner.value()), "colon"
            return
        self._place = "comma"
        if arguments and not scanner.container:  # some models write the arguments as a JSON string
            value = scanner.value()
            self._arguments(value if isinstance(value, str) else "{}" if scanner.text == "null" else scanner.text, out)
        elif self._key == "name" and self._name is None:
            self._give_name(scanner.value(), out)

    def _give_name(self, value: object, out: _Pieces) -> None:
        if not isinstance(value, str) or not value:
            self._place, self._reason = "broken", f"the function name is {value!r}"
            return
        self._name = value
        out.calls.append(ToolCallDelta(self._index, self._new_id(), value, "".join(self._early)))

    def _arguments(self, piece: str, out: _Pieces) -> None:
        self._has_arguments = True
        if self._name is None:
            self._early.append(piece)
        elif piece:
            out.calls.append(ToolCallDelta(self._index, arguments=piece))


def _certain(text: str, start: int, marker: str) -> int:
    """Up to where ``text`` cannot belong to ``marker`` or to the one newline before it."""
    keep = len(text)
    at = text.rfind("<", max(start, keep - len(marker) + 1))
    if at >= 0 and marker.startswith(text[at:]):  # a marker has one "<", so the last one decides
        keep = at
    return keep - 1 if keep > start and text[keep - 1] == "\n" else keep

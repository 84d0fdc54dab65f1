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

Models also write what the form does not allow for:

* a call inside a thought that was not closed: it ends the thought, and a ``</think>`` behind it is a marker. A
  ``<tool_call>`` in a thought that no JSON object follows is the thought's own text;
* several objects in one pair of markers, or an opening marker inside a call: each object is a call;
* words behind the object, within the markers: they are content.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mixquant_agents.engine.base import Delta, ToolCallDelta, new_call_id
from mixquant_agents.engine.hermes.json_scan import ValueScanner
from mixquant_agents.engine.parsing import TokenDelta

__all__ = ["CALL_CLOSE", "CALL_OPEN", "THINK_CLOSE", "THINK_OPEN", "HermesParser"]

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_VISIBLE = re.compile(r"\S")


class HermesParser:
    """The :class:`~mixquant_agents.engine.parsing.OutputParser` of one answer.

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
        self._dangling: set[str] = set()
        """Closing markers that may still come: of a thought that a call ended, of a call that words ended."""
        self._call: _Call | None = None
        self._named = 0
        self._invalid: list[tuple[str, str]] = []
        self._plain = False

    def feed(self, delta: TokenDelta) -> Delta:
        """What became certain with ``delta``."""
        text = delta.text
        if self._plain and "<" not in text and text[-1:] != "\n":
            return Delta(text)
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
        waiting = self._held or self._start or self._thinking or self._lead or self._gap or self._dangling or self._call
        self._plain = not waiting
        return Delta("".join(out.content), "".join(out.reasoning), tuple(out.calls))

    def finish(self) -> Delta:
        """What was held back: half a marker is text, half a call stays as it is or is invalid."""
        held, self._held = self._held, ""
        out = _Pieces()
        if self._thinking and self._tools and (at := held.find(CALL_OPEN)) >= 0:
            out.reasoning.append(held[:at].removesuffix("\n"))
            held = held[at + len(CALL_OPEN) :]
            self._call = _Call(self._named, self._new_id)
        if self._call is not None:
            self._close(self._call, held, out, ended=True)
        elif self._thinking:
            out.reasoning.append(held)
        elif not (self._gap and (not held or held.isspace())):
            out.content.append(held)
        return Delta("".join(out.content), "".join(out.reasoning), tuple(out.calls), invalid_calls=tuple(self._invalid))

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
        closing = [(place, mark) for mark in self._dangling if (place := text.find(mark, at)) >= 0]
        if closing and (opens < 0 or min(closing)[0] < opens):
            return self._close_dangling(text, at, *min(closing), out)
        if opens >= 0:
            before = text[at:opens]
            if not (self._gap and before.isspace()):
                out.content.append(before.removesuffix("\n"))
            self._gap = False
            self._call = _Call(self._named, self._new_id)
            return opens + len(CALL_OPEN)
        keep = _certain(text, at, CALL_OPEN, *self._dangling)
        if self._gap and (keep == at or text[at:keep].isspace()):
            keep = at
        else:
            self._gap = False
        out.content.append(text[at:keep])
        self._held = text[keep:]
        return len(text)

    def _close_dangling(self, text: str, at: int, closes: int, mark: str, out: _Pieces) -> int:
        before = text[at:closes]
        if not (self._gap and before.isspace()):
            out.content.append(before)
        self._dangling.discard(mark)
        self._gap, self._lead = mark == CALL_CLOSE, mark == THINK_CLOSE
        return closes + len(mark)

    def _in_thought(self, text: str, at: int, out: _Pieces) -> int:
        if self._drop_newline:
            self._drop_newline = False
            at += text[at] == "\n"
        closes = text.find(THINK_CLOSE, at)
        opens = text.find(CALL_OPEN, at) if self._tools else -1
        if opens >= 0 and (closes < 0 or opens < closes):
            return self._call_in_thought(text, at, opens, out)
        if closes >= 0:
            out.reasoning.append(text[at:closes].removesuffix("\n"))
            self._thinking, self._lead = False, True
            return closes + len(THINK_CLOSE)
        keep = _certain(text, at, THINK_CLOSE, *((CALL_OPEN,) if self._tools else ()))
        out.reasoning.append(text[at:keep])
        self._held = text[keep:]
        return len(text)

    def _call_in_thought(self, text: str, at: int, opens: int, out: _Pieces) -> int:
        """A marker of calls inside the thought: what follows it decides whether it is one."""
        inside = opens + len(CALL_OPEN)
        seen = _VISIBLE.search(text, inside)
        head = "" if seen is None else text[seen.start() : seen.start() + len(CALL_CLOSE)]
        if not head or (head != CALL_CLOSE and CALL_CLOSE.startswith(head)):
            keep = opens - 1 if opens > at and text[opens - 1] == "\n" else opens
            out.reasoning.append(text[at:keep])
            self._held = text[keep:]
            return len(text)
        if head[0] != "{" and head != CALL_CLOSE:
            out.reasoning.append(text[at:inside])
            return inside
        out.reasoning.append(text[at:opens].removesuffix("\n"))
        self._thinking = False
        self._dangling.add(THINK_CLOSE)
        self._call = _Call(self._named, self._new_id)
        return inside

    def _in_call(self, call: _Call, text: str, at: int, out: _Pieces) -> int:
        at = call.feed(text, at, out)
        if at == len(text):
            return at
        again = text.startswith(CALL_OPEN, at)
        if again or (call.complete and text[at] == "{"):
            self._close(call, "", out)
            self._call, self._gap = _Call(self._named, self._new_id), False
            return at + len(CALL_OPEN) if again else at
        if text.startswith(CALL_CLOSE, at):
            self._close(call, "", out)
            return at + len(CALL_CLOSE)
        if CALL_CLOSE.startswith(text[at:]) or CALL_OPEN.startswith(text[at:]):
            self._held = text[at:]
            return len(text)
        if call.complete:
            self._close(call, "", out)
            self._gap = False
            self._dangling.add(CALL_CLOSE)
            return at
        call.stray(text[at], out)
        return at + 1

    def _close(self, call: _Call, tail: str, out: _Pieces, *, ended: bool = False) -> None:
        """The call ends: by its marker or another call, or because the answer has ended."""
        self._call, self._gap = None, True
        reason = call.close(out, ended=ended)
        if reason is not None:
            self._invalid.append((call.raw + tail, f"{reason} before the answer ended" if ended else reason))
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
        self._broken: list[str] = []
        """The text from where the object stopped to be one."""

    @property
    def complete(self) -> bool:
        """The object has ended, and it was a call."""
        return self._place == "done" and self._name is not None

    @property
    def raw(self) -> str:
        """The text since the opening marker."""
        return "".join(self._raw).strip("\n")

    def feed(self, text: str, at: int, out: _Pieces) -> int:
        """Read on from ``at``; returns where it stopped: at a ``<`` outside strings, at anything visible behind a
        complete call, or at the end of ``text``."""
        start = at
        while at < len(text) and not (self._scanner is None and text[at] == "<"):
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
            elif self._place in ("done", "broken"):
                before, stop = at, text.find("<", at)
                at = len(text) if stop < 0 else stop
                if self._broken:
                    self._broken.append(text[before:at])
            else:
                at = self._between(text, at)
        self._raw.append(text[start:at])
        return at

    def stray(self, char: str, out: _Pieces) -> None:
        """A character that is neither JSON nor a marker: it stays in the text, which is then no JSON."""
        self._raw.append(char)
        if self._scanner is not None:
            self._take(self._scanner, char, out)
        elif self._broken:
            self._broken.append(char)
        elif self._place not in ("done", "comma"):
            self._break(char)

    def close(self, out: _Pieces, *, ended: bool) -> str | None:
        """The call is over; ``None``, or why it is none. A whole call without arguments gets ``{}``."""
        if self._name is None:
            return self._reason
        if self._broken:  # the reader of the arguments sees what made the object none
            self._arguments("".join(self._broken), out)
        elif not self._has_arguments and self._place in (("done",) if ended else ("done", "comma")):
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
        self._broken.append(char)

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


def _certain(text: str, start: int, *markers: str) -> int:
    """Up to where ``text`` cannot belong to one of the markers or to the one newline before it."""
    keep = len(text)
    at = text.rfind("<", max(start, keep - max(map(len, markers)) + 1))
    if at >= 0 and any(marker.startswith(text[at:]) for marker in markers):  # a marker has one "<": the last decides
        keep = at
    return keep - 1 if keep > start and text[keep - 1] == "\n" else keep

"""Incremental parser of answers whose calls are JSON between markers; Hermes has these:

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
* several objects or a list of them in one pair of markers, or an opening marker inside a call: each object is a call;
* words behind the object, within the markers: they are content.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mixquant_agents.engine.base import Delta, new_call_id
from mixquant_agents.engine.hermes.call import JsonCall, Pieces
from mixquant_agents.engine.hermes.markers import HERMES, Markers
from mixquant_agents.engine.hermes.marks import begins, certain, first
from mixquant_agents.engine.parsing import TokenDelta

__all__ = ["HermesParser"]

_VISIBLE = re.compile(r"\S")


class HermesParser:
    """The :class:`~mixquant_agents.engine.parsing.OutputParser` of one answer.

    Args:
        tools: whether calls may occur; without them ``<tool_call>`` is text.
        reasoning: whether a ``<think>`` block may open the answer; without it ``<think>`` is text.
        new_id: where the ids of calls come from (Hermes text has none).
        markers: of the model's family.
    """

    def __init__(
        self,
        *,
        tools: bool = True,
        reasoning: bool = True,
        new_id: Callable[[], str] = new_call_id,
        markers: Markers = HERMES,
    ) -> None:
        self._tools = tools
        self._new_id = new_id
        self._markers = markers
        self._opens = (markers.call_open, *markers.more_opens) if tools else ()
        self._begins = begins((*self._opens, markers.think_open, markers.think_close, *markers.silent))
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
        self._dangling: tuple[str, ...] = ()
        """Closing markers that may still come: of a thought that a call ended, of a call that words ended."""
        self._call: JsonCall | None = None
        self._list = False
        """The calls between the present markers are elements of a list."""
        self._block = 0
        """Calls read between the present markers."""
        self._named = 0
        self._invalid: list[tuple[str, str]] = []
        self._plain = False

    def feed(self, delta: TokenDelta) -> Delta:
        """What became certain with ``delta``."""
        text = delta.text
        if self._plain and text[-1:] != "\n" and self._begins.search(text) is None:
            return Delta(text)
        out = Pieces()
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
        out = Pieces()
        opening = first(held, 0, self._opens) if self._thinking else None
        if opening is not None:
            out.reasoning.append(held[: opening.start()].removesuffix("\n"))
            held = held[opening.end() :]
            self._open_call()
        if self._call is not None:
            self._close(self._call, held, out, ended=True)
        elif self._thinking:
            out.reasoning.append(held)
        elif not (self._gap and (not held or held.isspace())):
            out.content.append(held)
        return Delta("".join(out.content), "".join(out.reasoning), tuple(out.calls), invalid_calls=tuple(self._invalid))

    def _in_text(self, text: str, at: int, out: Pieces) -> int:
        if self._start or self._lead:
            seen = _VISIBLE.search(text, at)
            if seen is None:
                self._held = text[at:] if self._start else ""
                return len(text)
            if self._lead:
                at, self._lead = seen.start(), False
            else:
                think = self._markers.think_open
                head = text[seen.start() : seen.start() + len(think)]
                if head != think and think.startswith(head):
                    self._held = text[at:]
                    return len(text)
                self._start = False
                if head == think:
                    self._thinking = self._drop_newline = True
                    return seen.start() + len(think)
        marks = (*self._opens, *self._dangling, *self._markers.silent)
        if not marks:
            out.content.append(text[at:])
            return len(text)
        mark = first(text, at, marks)
        if mark is not None:
            return self._marker_in_text(text[at : mark.start()], mark.group(), mark.end(), out)
        keep = certain(text, at, marks)
        if self._gap and (keep == at or text[at:keep].isspace()):
            keep = at
        else:
            self._gap = False
        out.content.append(text[at:keep])
        self._held = text[keep:]
        return len(text)

    def _marker_in_text(self, before: str, mark: str, end: int, out: Pieces) -> int:
        silent = mark in self._markers.silent
        if not (self._gap and before.isspace()):
            out.content.append(before.removesuffix("\n") if silent or mark in self._opens else before)
        self._gap = False
        if mark in self._opens:
            self._open_call()
        elif silent:
            self._lead = True
        elif mark in self._dangling:
            self._dangling = tuple(other for other in self._dangling if other != mark)
            self._gap, self._lead = mark == self._markers.call_close, mark == self._markers.think_close
        return end

    def _in_thought(self, text: str, at: int, out: Pieces) -> int:
        if self._drop_newline:
            self._drop_newline = False
            at += text[at] == "\n"
        marks = (self._markers.think_close, *self._opens)
        mark = first(text, at, marks)
        if mark is None:
            keep = certain(text, at, marks)
            out.reasoning.append(text[at:keep])
            self._held = text[keep:]
            return len(text)
        if mark.group() != self._markers.think_close:
            return self._call_in_thought(text, at, mark.start(), mark.end(), out)
        out.reasoning.append(text[at : mark.start()].removesuffix("\n"))
        self._thinking, self._lead = False, True
        return mark.end()

    def _call_in_thought(self, text: str, at: int, opens: int, inside: int, out: Pieces) -> int:
        """A marker of calls inside the thought: what follows it decides whether it is one."""
        close = self._markers.call_close
        seen = _VISIBLE.search(text, inside)
        head = "" if seen is None else text[seen.start() : seen.start() + len(close)]
        if not head or (head != close and close.startswith(head)):
            keep = opens - 1 if opens > at and text[opens - 1] == "\n" else opens
            out.reasoning.append(text[at:keep])
            self._held = text[keep:]
            return len(text)
        if head[0] not in "{[" and head != close:
            out.reasoning.append(text[at:inside])
            return inside
        out.reasoning.append(text[at:opens].removesuffix("\n"))
        self._thinking = False
        self._dangling = (self._markers.think_close,)
        self._open_call()
        return inside

    def _in_call(self, call: JsonCall, text: str, at: int, out: Pieces) -> int:
        if call.untouched:
            seen = _VISIBLE.search(text, at)
            if seen is None:
                return len(text)
            at = seen.start()
            if text[at] == "[" and not self._list and not self._block:
                self._list = True
                return at + 1
            if self._list and text[at] == ",":
                return at + 1
            if self._list and text[at] == "]":
                self._close(call, "", out)
                self._dangling = (*self._dangling, self._markers.call_close)
                return at + 1
        at = call.feed(text, at, out)
        if at == len(text):
            return at
        opening = next((mark for mark in self._opens if text.startswith(mark, at)), None)
        if opening is not None or (call.complete and text[at] in ("{,]" if self._list else "{")):
            self._close(call, "", out)
            self._call = JsonCall(self._named, self._new_id)
            return at + len(opening or "")
        close = self._markers.call_close
        if text.startswith(close, at):
            self._close(call, "", out)
            return at + len(close)
        rest = text[at:]
        if any(mark.startswith(rest) for mark in (close, *self._opens)):
            self._held = rest
            return len(text)
        if call.complete:
            self._close(call, "", out)
            self._gap = False
            self._dangling = (*self._dangling, close)
            return at
        call.stray(text[at], out)
        return at + 1

    def _open_call(self) -> None:
        self._call, self._block = JsonCall(self._named, self._new_id), 0
        self._list = self._markers.in_list

    def _close(self, call: JsonCall, tail: str, out: Pieces, *, ended: bool = False) -> None:
        """The call ends: by its marker or another call, or because the answer has ended."""
        self._call, self._gap = None, True
        if call.untouched and (self._list or self._block) and not tail.strip():
            return
        self._block += 1
        reason = call.close(out, ended=ended)
        if reason is not None:
            self._invalid.append((call.raw + tail, f"{reason} before the answer ended" if ended else reason))
        else:
            self._named += 1

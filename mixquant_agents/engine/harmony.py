"""Incremental parser of answers in OpenAI's harmony format (gpt-oss).

::

    <|channel|>analysis<|message|>reasoning<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>

An answer is a row of messages, the first of which has its role from the prompt. The channel says what a message is:
``analysis`` is reasoning, a recipient makes it a call, anything else is content. vLLM's own parser needs the encoding's
vocabulary from the network and reads token ids; this one reads the text. Source of the format: OpenAI's "harmony
response format" guide.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mixquant_agents.engine.base import Delta, ToolCallDelta, new_call_id
from mixquant_agents.engine.parsing import TokenDelta

__all__ = ["HarmonyParser"]

_MARKER = re.compile(r"<\|(?:start|channel|message|constrain|end|call|return)\|>")
_MARKERS = tuple(f"<|{name}|>" for name in ("start", "channel", "message", "constrain", "end", "call", "return"))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_HEADER = re.compile(r"^\s*assistant\b|<\|(?:channel|constrain)\|>\s*\w*|\bto=[^\s<]+")
_LONGEST = max(map(len, _MARKERS))


class HarmonyParser:
    """The :class:`~mixquant_agents.engine.parsing.OutputParser` of one answer.

    Args:
        tools: whether calls may occur; without them a message to a function is content.
        new_id: where the ids of calls come from (harmony has none).
    """

    def __init__(self, *, tools: bool = True, new_id: Callable[[], str] = new_call_id) -> None:
        self._tools = tools
        self._new_id = new_id
        self._held = ""
        """Text that may belong to a marker."""
        self._header: str | None = ""
        """Text of the message's header so far; ``None`` inside its body."""
        self._kind = "content"
        self._fresh = True
        """Nothing has been read yet."""
        self._thoughts = 0
        """Reasoning messages begun."""
        self._calls = 0
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._pieces: list[ToolCallDelta] = []

    def feed(self, delta: TokenDelta) -> Delta:
        """What became certain with ``delta``."""
        text = self._held + delta.text
        self._held = ""
        at = 0
        for marker in _MARKER.finditer(text):
            self._text(text[at : marker.start()])
            self._mark(marker.group())
            at = marker.end()
        keep = next(
            (start for start in range(max(at, len(text) - _LONGEST + 1), len(text)) if _begins_marker(text[start:])),
            len(text),
        )
        self._text(text[at:keep])
        self._held = text[keep:]
        return self._out()

    def finish(self) -> Delta:
        """What was held back: half a marker is text, half a header that names a function is an invalid call."""
        self._text(self._held)
        self._held = ""
        invalid: tuple[tuple[str, str], ...] = ()
        if self._header is not None and _RECIPIENT.search(self._header):
            invalid = ((self._header, "the call has no arguments: the answer ended before its message"),)
        else:
            self._keep_words()
        return self._out(invalid)

    def _out(self, invalid: tuple[tuple[str, str], ...] = ()) -> Delta:
        out = Delta("".join(self._content), "".join(self._reasoning), tuple(self._pieces), invalid)
        self._content, self._reasoning, self._pieces = [], [], []
        return out

    def _mark(self, marker: str) -> None:
        self._fresh = False
        match marker:
            case "<|message|>":
                if self._header is not None:
                    self._begin(self._header)
            case "<|channel|>" | "<|constrain|>":
                self._header = (self._header or "") + marker  # in a body it begins the next message
            case _:
                self._keep_words()
                self._header = ""

    def _begin(self, header: str) -> None:
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL.search(header)
        self._header = None
        if recipient is not None and self._tools:
            self._kind = "call"
            name = recipient.group(1).removeprefix("functions.")
            self._pieces.append(ToolCallDelta(self._calls, self._new_id(), name))
            self._calls += 1
        elif channel is not None and channel.group(1) == "analysis":
            self._kind = "reasoning"
            if self._thoughts:
                self._reasoning.append("\n")
            self._thoughts += 1
        else:
            self._kind = "content"

    def _keep_words(self) -> None:
        """A header that never had a message is given up; words in it that are no header's are content."""
        words = _HEADER.sub("", self._header or "")
        if words.strip():
            self._content.append(words)

    def _text(self, text: str) -> None:
        if not text:
            return
        if self._header is not None:
            self._header += text
            head = self._header.lstrip()
            if self._fresh and head and not head.startswith("to=") and not "to=".startswith(head):
                text, self._header, self._fresh = self._header, None, False  # a grammar wrote the answer: no header
            else:
                return
        if self._kind == "call":
            self._pieces.append(ToolCallDelta(self._calls - 1, arguments=text))
        elif self._kind == "reasoning":
            self._reasoning.append(text)
        else:
            self._content.append(text)


def _begins_marker(text: str) -> bool:
    return any(marker.startswith(text) for marker in _MARKERS)

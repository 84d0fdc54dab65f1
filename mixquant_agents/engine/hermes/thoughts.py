"""Splits the block of reasoning off an answer's beginning; what follows is for another parser."""

from __future__ import annotations

import re

from mixquant_agents.engine.hermes.marks import certain, first

__all__ = ["ThoughtSplitter"]

_VISIBLE = re.compile(r"\S")


class ThoughtSplitter:
    """Reasoning of one answer, up to its closing tag or to a call.

    Args:
        opens, closes: tags around reasoning.
        calls: markers that end it as well, where calls may occur: they begin what follows.
        begun: the prompt has opened the block.

    Attributes:
        done: everything that comes belongs to what follows.
    """

    def __init__(self, opens: str, closes: str, calls: tuple[str, ...] = (), *, begun: bool = False) -> None:
        self._opens, self._closes, self._calls = opens, closes, calls
        self._held = ""
        self._thinking = begun
        self._fresh = begun
        """A newline behind the opening tag belongs to it."""
        self._lead = False
        """White space behind the closing tag belongs to it."""
        self.done = False

    def feed(self, text: str) -> tuple[str, str]:
        """``(reasoning, what follows)`` that became certain with ``text``."""
        text = self._held + text
        self._held = ""
        if self.done:
            return "", text
        reasoning = ""
        if not self._thinking and not self._lead:
            seen = _VISIBLE.search(text)
            head = text[seen.start() : seen.start() + len(self._opens)] if seen else ""
            if head != self._opens and self._opens.startswith(head):
                self._held = text
                return "", ""
            if seen is None or head != self._opens:
                self.done = True
                return "", text
            self._thinking = self._fresh = True
            text = text[seen.start() + len(self._opens) :]
        if self._thinking:
            if self._fresh and text:
                self._fresh = False
                text = text.removeprefix("\n")
            marks = (self._closes, *self._calls)
            mark = first(text, 0, marks)
            if mark is None:
                keep = certain(text, 0, marks)
                self._held = text[keep:]
                return text[:keep], ""
            reasoning = text[: mark.start()].removesuffix("\n")
            self._thinking = False
            if mark.group() != self._closes:
                self.done = True
                return reasoning, text[mark.start() :]
            self._lead = True
            text = text[mark.end() :]
        rest = text.lstrip()
        self._lead, self.done = not rest, bool(rest)
        return reasoning, rest

    def finish(self) -> tuple[str, str]:
        """``(reasoning, what follows)`` of what was held back."""
        held, self._held = self._held, ""
        return (held, "") if self._thinking else ("", held)

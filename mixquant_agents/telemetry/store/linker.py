"""What one batch says about the next: which agent run a call belongs to, and how long tools ran before a turn.

Held in memory, bounded; a restart forgets it, and what is then not known stays ``None``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.events import RunLink, Span, SpanKind
from mixquant_agents.telemetry.store.rows import to_microseconds

__all__ = ["Linker", "union_seconds"]

LIMIT = 8_192
SPANS = 1_024
"""Most tool calls of a thread that wait for its next turn."""


def union_seconds(intervals: list[tuple[int, int]]) -> float:
    """Time covered by at least one of the intervals (microseconds), in seconds: parallel tools are not counted
    twice."""
    covered, end = 0, None
    for start, stop in sorted(intervals):
        if end is None or start > end:
            covered, end = covered + stop - start, stop
        elif stop > end:
            covered, end = covered + stop - end, stop
    return covered / 1e6


class Linker:
    """Remembers links by run and tool times by thread until the turn that they belong to."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, RunLink] = OrderedDict()
        self._tools: OrderedDict[str, list[tuple[int, int]]] = OrderedDict()
        self._undo: list[tuple[OrderedDict[str, Any], str, Any]] = []

    def keep(self) -> None:
        """What was taken since the last call was written."""
        self._undo.clear()

    def put_back(self) -> None:
        """What was taken since the last :meth:`keep` was not written, and comes again."""
        for held, key, value in reversed(self._undo):
            if value is None:
                held.pop(key, None)
            else:
                held[key] = value
        self._undo.clear()

    def link(self, link: RunLink) -> None:
        """Take a link."""
        self._undo.append((self._links, link.run_id, self._links.get(link.run_id)))
        self._links[link.run_id] = link
        if len(self._links) > LIMIT:
            self._links.popitem(last=False)

    def span(self, span: Span) -> None:
        """Take a span; only tools and retrievals of a thread matter here."""
        if span.kind not in (SpanKind.TOOL, SpanKind.RETRIEVAL) or span.thread_id is None:
            return
        start = to_microseconds(span.started_at)
        interval = (start, start + round(span.seconds * 1e6))
        known = self._tools.get(span.thread_id)
        self._undo.append((self._tools, span.thread_id, known))
        self._tools[span.thread_id] = [*(known or ()), interval][-SPANS:]
        self._tools.move_to_end(span.thread_id)
        if len(self._tools) > LIMIT:
            self._tools.popitem(last=False)

    def turn(self, turn: TurnRecord, started_us: int) -> tuple[str | None, str | None, float | None]:
        """``(root run, graph node, tool seconds since the turn before)`` of a turn; ``None`` where nothing is known."""
        link = self._links.pop(turn.run_id, None) if turn.run_id is not None else None
        if link is not None:
            self._undo.append((self._links, link.run_id, link))
        root, node = (link.root_run_id, link.node) if link is not None else (turn.run_id, None)
        seconds = None
        if turn.thread_id is not None and turn.thread_id in self._tools:
            intervals = self._tools.pop(turn.thread_id)
            self._undo.append((self._tools, turn.thread_id, intervals))
            before = [(start, min(stop, started_us)) for start, stop in intervals if start < started_us]
            later = [interval for interval in intervals if interval[0] >= started_us]
            if later:
                self._tools[turn.thread_id] = later
            if before:
                seconds = union_seconds(before)
        return root, node, seconds

"""What one batch says about the next: which agent run a call belongs to, and how long tools ran before a turn.

Held in memory, bounded; a restart forgets it, and what is then not known stays ``None``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.events import RunLink, Span, SpanKind
from mixquant_agents.telemetry.store.rows import TurnLinks, to_microseconds

__all__ = ["Linker", "union_seconds"]

LIMIT = 8_192
SPANS = 1_024
"""Most tool calls of an agent that wait for its next turn."""


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


_Agent = tuple[str | None, str | None]
"""``(thread, agent)``: whose tools and turns follow each other."""


class Linker:
    """Remembers links by run and tool times by agent until the turn that they belong to."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, RunLink] = OrderedDict()
        self._tools: OrderedDict[_Agent, list[tuple[int, int]]] = OrderedDict()
        self._undo: list[tuple[OrderedDict[Any, Any], Any, Any]] = []

    def keep(self) -> None:
        """What was taken since the last call was written."""
        self._undo.clear()

    def put_back(self) -> None:
        """What was taken since the last :meth:`keep` was not written, and comes again."""
        for remembered, key, value in reversed(self._undo):
            if value is None:
                remembered.pop(key, None)
            else:
                remembered[key] = value
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
        agent = span.thread_id, span.agent_id
        earlier = self._tools.get(agent)
        self._undo.append((self._tools, agent, earlier))
        self._tools[agent] = [*(earlier or ()), interval][-SPANS:]
        self._tools.move_to_end(agent)
        if len(self._tools) > LIMIT:
            self._tools.popitem(last=False)

    def turn(self, turn: TurnRecord, started_us: int) -> TurnLinks:
        """What belongs to a turn that began at ``started_us`` (microseconds since the epoch)."""
        link = self._links.pop(turn.run_id, None) if turn.run_id is not None else None
        if link is None:
            return TurnLinks(turn.run_id, tool_seconds=self._tool_seconds((turn.thread_id, None), started_us))
        self._undo.append((self._links, link.run_id, link))
        seconds = self._tool_seconds((turn.thread_id, link.agent_id), started_us)
        return TurnLinks(link.root_run_id, link.node, link.parent_id, link.agent_id, seconds)

    def _tool_seconds(self, agent: _Agent, started_us: int) -> float | None:
        """Time that the agent's tools ran before a turn of it; they are not counted again."""
        if agent[0] is None or agent not in self._tools:
            return None
        intervals = self._tools.pop(agent)
        self._undo.append((self._tools, agent, intervals))
        before = [(start, min(stop, started_us)) for start, stop in intervals if start < started_us]
        later = [interval for interval in intervals if interval[0] >= started_us]
        if later:
            self._tools[agent] = later
        return union_seconds(before) if before else None

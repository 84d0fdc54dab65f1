"""A thread as a waterfall: turns with their phases, tools, gaps; long idle times are folded so that work stays
visible. And where its time went: every instant is given to what ran then, so the parts add up to the whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from mixquant_agents.records import PHASES
from mixquant_agents.telemetry.events import SpanKind
from mixquant_agents.telemetry.store.reader import StoredSpan
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = ["PARTS", "Bar", "Row", "Waterfall", "waterfall"]

PARTS = (
    *((phase.name, phase.label.lower()) for phase in PHASES),
    ("other", "rest of the turns"),
    ("tool", "tools"),
    ("gap", "agent code"),
    ("idle", "idle between runs"),
)
"""``(name, label)`` of the parts of a thread's time, in the order in which they are shown."""

FOLD_SHARE = 0.08
"""A gap longer than this share of the working time (and than half a second) is folded."""
FOLD_WIDTH = 0.025
"""Width of a fold, share of the axis."""
TICKS = 5
"""Marks of the time axis."""
BEFORE_FIRST_TURN_US = 60_000_000
"""Tools that ran longer before the first turn shown belong to turns that are not shown."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of a row: ``left`` and ``width`` in percent of the axis, ``seconds`` as measured. ``phase``: name of a
    phase of a turn, ``tool``, ``frame`` (a node, an agent's run), or ``unknown``."""

    phase: str
    left: float
    width: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One turn, tool, graph node, agent's run or folded gap. What ran inside another row stands below it, in the order
    of time.

    Attributes:
        offset: seconds since the first row began.
        depth: in how many other rows it ran: a sub-agent's turns run inside the tool that called it.
        agent: name of the sub-agent whose turn it is; ``None`` for the agent of the whole run.
        own: seconds in which nothing ran inside it; ``None`` for a turn and a folded gap.
    """

    kind: Literal["turn", "tool", "node", "agent", "idle"]
    label: str
    offset: float
    seconds: float
    bars: tuple[Bar, ...]
    turn: StoredTurn | None = None
    span: StoredSpan | None = None
    depth: int = 0
    agent: str | None = None
    own: float | None = None


@dataclass(slots=True)
class Waterfall:
    """Rows and where the time went.

    Attributes:
        totals: seconds by part: the phases of the turns, ``other`` (inside turns, unaccounted), ``tool`` (a tool's own
            time, without the turns and tools that ran inside it), ``gap`` (inside an agent's run, neither model nor
            tool), ``idle`` (between runs). What ran in parallel shares its time in equal parts: the totals add up to
            ``seconds``.
        seconds: from the first beginning to the last end, folded time included.
        folded: long idle times are drawn short.
        ticks: ``(percent of the axis, seconds since the first beginning)``, from left to right.
    """

    rows: list[Row] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    folded: bool = False
    ticks: list[tuple[float, float]] = field(default_factory=list)

    @property
    def agents(self) -> dict[int, str]:
        """Names of the sub-agents, by the number of their turns."""
        return {row.turn.number: row.agent for row in self.rows if row.turn is not None and row.agent is not None}


@dataclass(frozen=True, slots=True)
class _Item:
    """A turn, a tool or a frame (a node, an agent's run), from ``start`` to ``stop`` (microseconds since the epoch),
    and the tools around it."""

    start: int
    stop: int
    turn: StoredTurn | None = None
    span: StoredSpan | None = None
    around: tuple[str, ...] = ()
    agent: str | None = None

    @property
    def run(self) -> str | None:
        return self.turn.root_run_id if self.turn is not None else self.span.run_id if self.span is not None else None


class _Axis:
    """Maps microseconds to percent, with folds."""

    def __init__(self, items: Sequence[_Item]) -> None:
        busy = _covered((item.start, item.stop) for item in items)
        work = sum(stop - start for start, stop in busy) or 1
        limit = max(work * FOLD_SHARE, 500_000)
        self.folds = [(before[1], after[0]) for before, after in pairwise(busy) if after[0] - before[1] > limit]
        self.start = busy[0][0] if busy else 0
        self.end = busy[-1][1] if busy else 1
        plain = self.end - self.start - sum(stop - start for start, stop in self.folds)
        room = max(0.2, 1 - FOLD_WIDTH * len(self.folds))
        self._fold = (1 - room) / len(self.folds) if self.folds else 0.0
        self._scale = room / max(1, plain)

    def percent(self, at: int) -> float:
        plain, folds = at - self.start, 0.0
        for start, stop in self.folds:
            if at >= stop:
                plain -= stop - start
                folds += 1
            elif at > start:
                plain -= at - start
                folds += (at - start) / (stop - start)
        return 100 * (plain * self._scale + folds * self._fold)

    def instant(self, percent: float) -> float:
        """The instant at a place of the axis, microseconds since the epoch."""
        share, at = percent / 100, float(self.start)
        for start, stop in self.folds:
            if share <= (start - at) * self._scale:
                break
            share, at = share - (start - at) * self._scale, float(start)
            if share <= self._fold:
                return at + share / self._fold * (stop - start)
            share, at = share - self._fold, float(stop)
        return at + share / self._scale

    def ticks(self) -> list[tuple[float, float]]:
        """``(percent, seconds since the beginning)``, at even distances; none where no time passed."""
        if self.end - self.start < TICKS:
            return []
        percents = (100 * n / (TICKS - 1) for n in range(TICKS))
        return [(percent, (self.instant(percent) - self.start) / 1e6) for percent in percents]


def waterfall(turns: Sequence[StoredTurn], spans: Sequence[StoredSpan]) -> Waterfall:
    """Lay out a thread as a tree. Turns, tools and retrievals make the axis and take the time; nodes and agents' runs
    frame them. A frame in which no turn or tool ran is left out; what of a frame lies beyond the axis is not drawn."""
    items = _items(turns, spans)
    if not items:
        return Waterfall()
    axis = _Axis(items)
    result = Waterfall(seconds=(axis.end - axis.start) / 1e6, folded=bool(axis.folds), ticks=axis.ticks())
    folds, last_run = list(axis.folds), None
    for item, depth, own in _tree(items, spans):
        while folds and item.start >= folds[0][1]:
            start, stop = folds.pop(0)
            left, right = axis.percent(start), axis.percent(stop)
            seconds = (stop - start) / 1e6
            label = "idle" if item.run != last_run else "agent code"
            bar = Bar("unknown", left, right - left, seconds)
            result.rows.append(Row("idle", label, (start - axis.start) / 1e6, seconds, (bar,)))
        result.rows.append(_row(item, depth, own, axis))
        last_run = item.run
    result.totals = _totals(items, spans)
    return result


def _tree(items: Sequence[_Item], spans: Sequence[StoredSpan]) -> Iterator[tuple[_Item, int, float | None]]:
    """``(item, depth, own seconds)`` of turns and tools with the frames around them, each above what ran inside it."""
    parents = {span.span_id: span.parent_id for span in spans}
    rows = {item.span.span_id for item in items if item.span is not None}
    frames = {
        span.span_id: _Item(span.started_us, span.started_us + round(span.seconds * 1e6), span=span)
        for span in spans
        if span.kind in (SpanKind.NODE, SpanKind.AGENT) and span.span_id not in rows
    }

    def parent_of(item: _Item) -> str | None:
        """The nearest row around an item; ``None`` at the top, and in a circle."""
        own = None if item.span is None else item.span.span_id
        outer = item.turn.parent_id if item.turn is not None else parents.get(own or "")
        chain = list(_chain(outer, parents))
        if own in chain:
            return None
        return next((span_id for span_id in chain if span_id in rows or span_id in frames), None)

    inside: dict[str | None, list[_Item]] = {}
    waiting = list(items)
    while waiting:
        item = waiting.pop()
        outer = parent_of(item)
        inside.setdefault(outer, []).append(item)
        if outer is not None and outer in frames:
            waiting.append(frames.pop(outer))
            rows.add(outer)

    def last_first(outer: str | None, depth: int) -> list[tuple[_Item, int]]:
        return [(item, depth) for item in sorted(inside.get(outer, ()), key=_in_time, reverse=True)]

    stack = last_first(None, 0)
    while stack:
        item, depth = stack.pop()
        if item.span is None:
            yield item, depth, None
            continue
        yield item, depth, _own_seconds(item, inside.get(item.span.span_id, ()))
        stack += last_first(item.span.span_id, depth + 1)


def _own_seconds(item: _Item, inside: Iterable[_Item]) -> float:
    """How long an item ran while nothing ran inside it."""
    pieces = ((max(item.start, part.start), min(item.stop, part.stop)) for part in inside)
    taken = _covered((start, stop) for start, stop in pieces if stop > start)
    return (item.stop - item.start - sum(stop - start for start, stop in taken)) / 1e6


def _in_time(item: _Item) -> tuple[int, int, int]:
    """Order of items: by their beginning; of those that begin together the tool before what ran in it."""
    return item.start, -item.stop if item.span is not None else 0, item.stop


def _items(turns: Sequence[StoredTurn], spans: Sequence[StoredSpan]) -> list[_Item]:
    """Turns and tools in the order of time."""
    tools = {span.span_id: span for span in spans if span.kind in (SpanKind.TOOL, SpanKind.RETRIEVAL)}
    parents = {span.span_id: span.parent_id for span in spans}

    def around(parent: str | None, own: str | None = None) -> tuple[str, ...]:
        return tuple(span_id for span_id in _chain(parent, parents) if span_id in tools and span_id != own)

    agents = {span.span_id: span for span in spans if span.kind == SpanKind.AGENT}

    def agent_of(turn: StoredTurn) -> str | None:
        runs = (agents[span_id] for span_id in _chain(turn.parent_id, parents) if span_id in agents)
        nearest = next(runs, None)
        return None if nearest is None or nearest.parent_id is None else nearest.name

    items = [
        _Item(
            turn.started_us,
            turn.started_us + sum(stop for _, stop in _segments(turn)[-1:]),
            turn=turn,
            around=around(turn.parent_id),
            agent=agent_of(turn),
        )
        for turn in turns
    ]
    first = min((item.start for item in items), default=None)
    items += [
        _Item(
            span.started_us,
            span.started_us + round(span.seconds * 1e6),
            span=span,
            around=around(span.parent_id, span.span_id),
        )
        for span in tools.values()
        if first is None or span.started_us >= first - BEFORE_FIRST_TURN_US
    ]
    return sorted(items, key=_in_time)


def _chain(span_id: str | None, parents: Mapping[str, str | None]) -> Iterator[str]:
    """A span and those around it, from the innermost on; a store that was tampered with may hold a circle."""
    seen: set[str] = set()
    while span_id is not None and span_id not in seen:
        seen.add(span_id)
        yield span_id
        span_id = parents.get(span_id)


def _segments(turn: StoredTurn) -> list[tuple[str, int]]:
    """What a turn did, one after the other: ``(phase, end in microseconds since its start)``.

    What is known is drawn: of a turn that was cut off, or that a remote engine ran, the time until the first token may
    be known and not how it was spent.
    """
    segments: list[tuple[str, int]] = []
    at = 0.0

    def until(name: str, end: float | None) -> None:
        nonlocal at
        if end is not None and end > at:
            at = end
            segments.append((name, round(end * 1e6)))

    total = turn.total_seconds
    limit = float("inf") if total is None else total
    for phase in PHASES:
        if phase.phase == "later" and turn.ttft_seconds is not None:
            until("unknown", min(turn.ttft_seconds, limit))
        seconds = getattr(turn, phase.field)
        if seconds:
            until(phase.name, min(at + seconds, limit))
    until("unknown", turn.ttft_seconds if total is None else total)
    return segments


def _row(item: _Item, depth: int, own: float | None, axis: _Axis) -> Row:
    offset, seconds = (item.start - axis.start) / 1e6, (item.stop - item.start) / 1e6
    if item.span is not None:
        kind: Literal["tool", "node", "agent"] = "tool"
        if item.span.kind in (SpanKind.NODE, SpanKind.AGENT):
            kind = "node" if item.span.kind == SpanKind.NODE else "agent"
        left, right = (axis.percent(min(max(at, axis.start), axis.end)) for at in (item.start, item.stop))
        bar = Bar("tool" if kind == "tool" else "frame", left, right - left, seconds)
        return Row(kind, item.span.name, offset, seconds, (bar,), span=item.span, depth=depth, own=own)
    turn = item.turn
    if turn is None:  # pragma: no cover - an item is a turn or a span
        raise AssertionError
    bars, at = [], item.start
    for phase, end in _segments(turn):
        stop = item.start + end
        left = axis.percent(at)
        bars.append(Bar(phase, left, max(0.0, axis.percent(stop) - left), (stop - at) / 1e6))
        at = stop
    if not bars:  # nothing is known but that it began
        bars.append(Bar("unknown", axis.percent(item.start), 0.0, 0.0))
    label = f"turn {turn.turn_index}"
    return Row("turn", label, offset, seconds, tuple(bars), turn=turn, depth=depth, agent=item.agent)


def _covered(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of intervals, in order."""
    union: list[tuple[int, int]] = []
    for start, stop in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], stop)
        else:
            union.append((start, stop))
    return union


def _totals(items: Sequence[_Item], spans: Sequence[StoredSpan]) -> dict[str, float]:
    """Seconds by part. Each instant belongs to the innermost of what ran then: a tool in which a turn runs does not
    count beside it. Several that ran side by side share the instant in equal parts."""
    totals = dict.fromkeys((name for name, _ in PARTS), 0.0)
    changes: dict[int, list[tuple[int, _Item, str]]] = defaultdict(list)
    for item in items:
        at = item.start
        segments = [("tool", item.stop - item.start)] if item.turn is None else _segments(item.turn)
        for part, end in segments:
            stop = item.start + end
            if stop > at:
                changes[at].append((1, item, part))
                changes[stop].append((-1, item, part))
                at = stop
    running: dict[tuple[int, str], _Item] = {}
    inside: defaultdict[str, int] = defaultdict(int)  # by tool: how many turns and tools run in it
    instants = sorted(changes)
    for now, then in pairwise([*instants, instants[-1] if instants else 0]):
        for step, item, part in sorted(changes[now], key=lambda change: change[0]):
            if step > 0:
                running[id(item), part] = item
            else:
                running.pop((id(item), part), None)
            for tool in item.around:
                inside[tool] += step
        innermost = [part for (_, part), item in running.items() if item.span is None or not inside[item.span.span_id]]
        innermost = innermost or [part for _, part in running]  # spans that lie inside each other
        for part in innermost:
            totals["other" if part == "unknown" else part] += (then - now) / 1e6 / len(innermost)
    frames = _covered(
        (span.started_us, span.started_us + round(span.seconds * 1e6))
        for span in spans
        if span.kind in (SpanKind.AGENT, SpanKind.NODE)
    )
    for gap, same_run in _gaps(items):
        framed = sum(max(0, min(stop, gap[1]) - max(start, gap[0])) for start, stop in frames)
        inside_run = gap[1] - gap[0] if same_run else framed
        totals["gap"] += inside_run / 1e6
        totals["idle"] += (gap[1] - gap[0] - inside_run) / 1e6
    return totals


def _gaps(items: Sequence[_Item]) -> Iterator[tuple[tuple[int, int], bool]]:
    """When neither a turn nor a tool ran, and whether what ran before and after belongs to one run."""
    end, run = items[0].stop, items[0].run
    for item in items[1:]:
        if item.start > end:
            yield (end, item.start), item.run is not None and item.run == run
        if item.stop >= end:
            end, run = item.stop, item.run

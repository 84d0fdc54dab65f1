"""A thread as a waterfall: turns with their phases, tools, gaps; long idle times are folded so that work stays
visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from mixquant_agents.records import PHASES
from mixquant_agents.telemetry.events import SpanKind
from mixquant_agents.telemetry.store.linker import union_seconds
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


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of a row: ``left`` and ``width`` in percent of the axis, ``seconds`` as measured. ``phase``: name of a
    phase of a turn, ``tool``, or ``unknown``."""

    phase: str
    left: float
    width: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One turn, tool or folded gap, in the order of time. ``offset``: seconds since the first row began."""

    kind: Literal["turn", "tool", "idle"]
    label: str
    offset: float
    seconds: float
    bars: tuple[Bar, ...]
    turn: StoredTurn | None = None
    span: StoredSpan | None = None


@dataclass(slots=True)
class Waterfall:
    """Rows and where the time went.

    Attributes:
        totals: seconds by phase of the turns, ``other`` (inside turns, unaccounted), ``tool`` (parallel tools counted
            once), ``gap`` (inside an agent's run, neither model nor tool), ``idle`` (between runs).
        seconds: from the first beginning to the last end, folded time included.
        folded: long idle times are drawn short.
    """

    rows: list[Row] = field(default_factory=list)
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    folded: bool = False


@dataclass(frozen=True, slots=True)
class _Item:
    start: int
    stop: int
    turn: StoredTurn | None = None
    span: StoredSpan | None = None

    @property
    def run(self) -> str | None:
        return self.turn.root_run_id if self.turn is not None else self.span.run_id if self.span is not None else None


class _Axis:
    """Maps microseconds to percent, with folds."""

    def __init__(self, items: Sequence[_Item]) -> None:
        busy: list[list[int]] = []
        for item in items:
            if busy and item.start <= busy[-1][1]:
                busy[-1][1] = max(busy[-1][1], item.stop)
            else:
                busy.append([item.start, item.stop])
        work = sum(stop - start for start, stop in busy) or 1
        limit = max(work * FOLD_SHARE, 500_000)
        self.folds = [(one[1], two[0]) for one, two in pairwise(busy) if two[0] - one[1] > limit]
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


def waterfall(turns: Sequence[StoredTurn], spans: Sequence[StoredSpan]) -> Waterfall:
    """Lay out a thread. Only tools and retrievals get rows of their own; nodes and agent runs frame them in time."""
    items = [
        _Item(turn.started_us, turn.started_us + round((turn.total_seconds or turn.ttft_seconds or 0) * 1e6), turn=turn)
        for turn in turns
    ]
    first = min((item.start for item in items), default=None)
    tools = [span for span in spans if span.kind in (SpanKind.TOOL, SpanKind.RETRIEVAL)]
    items += [
        _Item(span.started_us, span.started_us + round(span.seconds * 1e6), span=span)
        for span in tools
        if first is None or span.started_us >= first - 60_000_000  # tools of turns that are not shown are not either
    ]
    items.sort(key=lambda item: (item.start, item.stop))
    if not items:
        return Waterfall()
    axis = _Axis(items)
    result = Waterfall(seconds=(axis.end - axis.start) / 1e6, folded=bool(axis.folds))
    folds = iter([*axis.folds, (1 << 80, 1 << 80)])
    fold, last_run = next(folds), None
    for item in items:
        while item.start >= fold[1]:
            left, right = axis.percent(fold[0]), axis.percent(fold[1])
            seconds = (fold[1] - fold[0]) / 1e6
            bar = Bar("unknown", left, right - left, seconds)
            result.rows.append(
                Row(
                    "idle",
                    "idle" if item.run != last_run else "agent code",
                    (fold[0] - axis.start) / 1e6,
                    seconds,
                    (bar,),
                )
            )
            fold = next(folds)
        result.rows.append(_row(item, axis))
        last_run = item.run
    result.totals = _totals(items)
    return result


def _row(item: _Item, axis: _Axis) -> Row:
    offset, seconds = (item.start - axis.start) / 1e6, (item.stop - item.start) / 1e6
    if item.span is not None:
        left = axis.percent(item.start)
        bar = Bar("tool", left, axis.percent(item.stop) - left, seconds)
        return Row("tool", item.span.name, offset, seconds, (bar,), span=item.span)
    turn = item.turn
    if turn is None:  # pragma: no cover - an item is a turn or a span
        raise AssertionError
    bars, at = [], float(item.start)
    phases: list[tuple[str, float | None]] = [(phase.name, getattr(turn, phase.field)) for phase in PHASES]
    if all(value is None for _, value in phases):
        phases = [("unknown", seconds)]
    for phase, value in phases:
        if value:
            stop = min(at + value * 1e6, float(item.stop)) if item.stop > at else at
            left = axis.percent(round(at))
            bars.append(Bar(phase, left, max(0.0, axis.percent(round(stop)) - left), value))
            at = stop
    return Row("turn", f"turn {turn.turn_index}", offset, seconds, tuple(bars), turn=turn)


def _totals(items: Sequence[_Item]) -> dict[str, float]:
    turns = [item.turn for item in items if item.turn is not None]
    totals = {phase.name: sum(getattr(turn, phase.field) or 0.0 for turn in turns) for phase in PHASES}
    inside = sum(turn.total_seconds or 0.0 for turn in turns)
    totals["other"] = max(0.0, inside - sum(totals.values()))
    totals["tool"] = union_seconds([(item.start, item.stop) for item in items if item.span is not None])
    totals["gap"] = totals["idle"] = 0.0
    end, run = items[0].stop, items[0].run
    for item in items[1:]:
        if item.start > end:
            same = item.run is not None and item.run == run
            totals["gap" if same else "idle"] += (item.start - end) / 1e6
        if item.stop >= end:
            end, run = item.stop, item.run
    return totals

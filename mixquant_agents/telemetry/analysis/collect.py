"""Collecting what an overview or a comparison is made of: from the turns themselves when they are few, else from
roll-ups."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixquant_agents.records import percentile
from mixquant_agents.telemetry.store.aggregate import DAY, HOUR, MINUTE, QUARTER, SUMMARIZED, Aggregate
from mixquant_agents.telemetry.store.aggregate import MOST_TURNS as MOST_COUNTED
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.models import Series
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.retention import MINUTES_KEPT_SECONDS, oldest
from mixquant_agents.telemetry.store.rollups import counted_rows

__all__ = ["Collected", "collect", "level_for"]

MOST_INTERVALS = 500
"""Most points of a chart."""
SHORT_INTERVALS = 60
"""Most intervals of less than a minute."""
EXACT_TURNS = 2_000
"""Up to this many turns are read one by one, and percentiles are exact."""
MOST_TURNS = 5_000
"""Where roll-ups cannot answer (one thread, one run), the newest this many are read."""


@dataclass(slots=True)
class Collected:
    """Aggregates of the chosen turns.

    Attributes:
        level: length of an interval, seconds.
        now_us: the present, microseconds since the epoch: where a window ends that was to end later.
        since_us, until_us: the window, microseconds since the epoch; whole intervals where roll-ups answered.
        parts: aggregates by ``(start of the interval in seconds since the epoch, series id)``.
        values: every value by phase and series id, where the turns were read one by one; ``None`` where roll-ups
            answered.
        truncated: not all chosen turns were read, only the newest.
    """

    level: int
    since_us: int
    until_us: int
    now_us: int
    parts: dict[tuple[int, int], Aggregate] = field(default_factory=dict)
    values: dict[str, dict[int, list[float]]] | None = None
    truncated: bool = False

    def present(self, series: Iterable[Series]) -> list[Series]:
        """Those of ``series`` that the chosen turns are of."""
        ids = {series_id for _, series_id in self.parts}
        return [entry for entry in series if entry.id in ids]

    def total(self, series: Sequence[int] | None = None) -> Aggregate:
        """Everything, or some series, in one aggregate."""
        whole = Aggregate()
        for (_, part), aggregate in self.parts.items():
            if series is None or part in series:
                whole.merge(aggregate)
        return whole

    def intervals(self, series: Sequence[int] | None = None) -> tuple[int, list[tuple[int, Aggregate]]]:
        """``(length, [(start, aggregate)])``, seconds, from the first interval with a turn to the end of the window, of
        all series or of some: the intervals are the same. Intervals without turns are there: an hour in which nothing
        ran is not left out. Of very long times several are taken together."""
        if not self.parts:
            return self.level, []
        first = min(start for start, _ in self.parts)
        last = max(max(start for start, _ in self.parts), (min(self.until_us, self.now_us) - 1) // 1_000_000)
        length = self.level * -(-(last - first + 1) // (self.level * MOST_INTERVALS))
        first -= first % length
        merged = {start: Aggregate() for start in range(first, last + 1, length)}
        for (start, part), aggregate in self.parts.items():
            if series is None or part in series:
                merged[start - start % length].merge(aggregate)
        return length, list(merged.items())

    def percentile(
        self, name: str, share: float, total: Aggregate, series: Sequence[int] | None = None
    ) -> float | None:
        """Of all series or of some: exact where the turns were read, else from the histogram of ``total``, which
        holds these series (at most 2 % off)."""
        if self.values is not None:
            by_series = self.values[name]
            series_ids = by_series if series is None else series
            return percentile([value for part in series_ids for value in by_series.get(part, ())], share)
        return total.percentile(name, share)


def level_for(since_us: int, until_us: int, now_us: int) -> int:
    """Length of the intervals, seconds, that gives a readable number of points over a window."""
    span = (until_us - since_us) / 1e6
    if span <= 6 * HOUR and now_us - since_us < (MINUTES_KEPT_SECONDS - HOUR) * 1e6:
        return MINUTE
    return HOUR if span <= 2 * DAY else QUARTER if span <= 10 * DAY else DAY


def collect(store: TurnStore, turn_filter: TurnFilter, *, now: float | None = None) -> Collected:
    """Collect the turns of ``turn_filter``. Without ``until`` the window ends now; without ``since`` it begins with the
    store's first turn."""
    now_us = int((time.time() if now is None else now) * 1e6)
    until_us = turn_filter.until_us if turn_filter.until_us is not None else now_us + 1
    ids = store.series_ids(turn_filter)
    since_us = turn_filter.since_us if turn_filter.since_us is not None else min(_first_us(store, until_us), until_us)
    collected = Collected(level_for(since_us, until_us, now_us), since_us, until_us, now_us)
    if turn_filter.by_series and _count(store, collected, turn_filter, ids) > EXACT_TURNS:
        _from_rollups(store, collected, turn_filter, ids)
        _widen(collected, turn_filter, now_us)
    else:
        collected.level = _finer(collected)
        _from_turns(store, collected, turn_filter, ids)
    return collected


def _finer(collected: Collected) -> int:
    """Length of the intervals, seconds, where the turns are read themselves: a window of minutes shows seconds."""
    span = (min(collected.until_us, collected.now_us) - collected.since_us) / 1e6
    return next((seconds for seconds in (1, 5, 15) if span <= SHORT_INTERVALS * seconds), collected.level)


def _widen(collected: Collected, turn_filter: TurnFilter, now_us: int) -> None:
    """Roll-ups answer for whole intervals: the window is theirs, so that rates are over the time that was counted."""
    width = collected.level * 1_000_000
    if turn_filter.since is not None:
        collected.since_us -= collected.since_us % width
    collected.until_us = max(collected.until_us, min(-(-collected.until_us // width) * width, now_us + 1))


def _first_us(store: TurnStore, otherwise: int) -> int:
    with store.reading() as connection:
        first = oldest(connection)
    return first if first is not None else otherwise


def _window(collected: Collected, ids: list[int] | None) -> tuple[str, list[Any]]:
    """Condition over ``rollups``: the intervals that touch the window."""
    first = collected.since_us // 1_000_000 // collected.level * collected.level
    last = -(-collected.until_us // 1_000_000)
    where, values = "level = ? AND start >= ? AND start < ?", [collected.level, first, last]
    if ids is not None:
        where += f" AND series_id IN ({', '.join('?' * len(ids))})"
        values += ids
    return where, values


_OUTCOMES: dict[str, tuple[int, ...]] = {"aborted": (1, 3), "failed": (2, 3), "bad": (1, 2, 3)}
"""The outcomes in ``bad_rollups`` that a status asks for."""


def _count_in(column: str) -> str:
    """A column of ``rollups`` as SQL; 0 where it holds no count."""
    return f"iif(typeof({column}) = 'integer' AND {column} BETWEEN 0 AND {MOST_COUNTED}, {column}, 0)"


def _count(store: TurnStore, collected: Collected, turn_filter: TurnFilter, ids: list[int] | None) -> int:
    where, values = _window(collected, ids)
    table, column = "rollups", _count_in("turns")
    if turn_filter.status == "ok":
        column += f" - max({_count_in('aborted')}, {_count_in('failed')})"
    elif turn_filter.status is not None:
        table, where = "bad_rollups", f"{where} AND outcome IN {_OUTCOMES[turn_filter.status]}"
    with store.reading() as connection:
        row = connection.execute(f"SELECT ifnull(sum({column}), 0) FROM {table} WHERE {where}", values).fetchone()  # noqa: S608 # built above
    return int(row[0])


def _from_rollups(store: TurnStore, collected: Collected, turn_filter: TurnFilter, ids: list[int] | None) -> None:
    if turn_filter.status is None:
        collected.parts = _parts(store, collected, ids)
    elif turn_filter.status != "ok":
        collected.parts = _parts(store, collected, ids, _OUTCOMES[turn_filter.status])
    else:
        bad = _parts(store, collected, ids, _OUTCOMES["bad"])
        for key, every in _parts(store, collected, ids).items():
            rest = every.without(bad[key]) if key in bad else every
            if rest.turns:
                collected.parts[key] = rest


def _parts(
    store: TurnStore, collected: Collected, ids: list[int] | None, outcomes: tuple[int, ...] | None = None
) -> dict[tuple[int, int], Aggregate]:
    where, values = _window(collected, ids)
    table = "rollups"
    if outcomes is not None:
        table, where = "bad_rollups", f"{where} AND outcome IN {outcomes}"
    query = f"SELECT start, series_id, turns, aborted, failed, sums, bins, strata FROM {table} WHERE {where}"  # noqa: S608 # built above
    parts: dict[tuple[int, int], Aggregate] = {}
    with store.reading() as connection:
        for start, series, *rest in connection.execute(query, values):
            part, earlier = Aggregate.load(*rest), parts.get((start, series))
            if earlier is None:
                parts[start, series] = part
            else:  # another outcome of the same interval
                earlier.merge(part)
    return parts


def _from_turns(store: TurnStore, collected: Collected, turn_filter: TurnFilter, ids: list[int] | None) -> None:
    window = TurnFilter(thread=turn_filter.thread, run=turn_filter.run, status=turn_filter.status)
    where, values = window.where(ids)
    # The series index serves the window in time; thread, run and what went wrong have indexes of their own.
    if ids is None and turn_filter.by_series and turn_filter.status in (None, "ok"):
        where += " AND turns.series_id IN (SELECT id FROM series)"
    where += f" AND started_us >= ? AND started_us < ? ORDER BY started_us DESC LIMIT {MOST_TURNS + 1}"
    with store.reading() as connection:
        rows = counted_rows(connection, where, (*values, collected.since_us, collected.until_us))
    if len(rows) > MOST_TURNS:
        collected.truncated = True
        rows.pop()
    collected.values = {}
    width = collected.level * 1_000_000
    for turn in rows:
        key = (turn.started_us // width * collected.level, turn.series_id)
        aggregate = collected.parts.get(key)
        if aggregate is None:
            aggregate = collected.parts[key] = Aggregate()
        aggregate.add(turn)
    for time_field in SUMMARIZED:
        by_series = collected.values[time_field.name] = {}
        for turn in rows:
            if (value := getattr(turn, time_field.field)) is not None:
                by_series.setdefault(turn.series_id, []).append(value)

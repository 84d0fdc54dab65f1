"""Keeping roll-ups and thread statistics in step with the turns, inside the transaction that inserts them."""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast

from mixquant_agents.records import COUNTS, TurnRecord
from mixquant_agents.telemetry.store.aggregate import LEVELS, SUMMARIZED, Aggregate, Counted
from mixquant_agents.telemetry.store.schema import select_columns

__all__ = ["Fresh", "RollupCache", "StoredCounts", "counted_rows", "fill_bad_rollups", "write_rollups", "write_threads"]

Fresh = tuple[Counted, int, int]
"""A turn just inserted, its series, its start in microseconds."""
FreshTurn = tuple[TurnRecord, int, int]
"""The same with the thread it belongs to."""

_VALUES = "turns, aborted, failed, sums, bins, strata"
_TABLES = {
    table: (
        f"SELECT {_VALUES} FROM {table} WHERE level = ? AND {' AND '.join(f'{name} = ?' for name in keys)}",  # noqa: S608 # constants
        f"INSERT OR REPLACE INTO {table} (level, {', '.join(keys)}, {_VALUES}) VALUES (?, {'?, ' * len(keys)}?, ?, ?, ?, ?, ?)",  # noqa: S608, E501 # constants
    )
    for table, keys in (
        ("rollups", ("start", "series_id")),
        ("bad_rollups", ("start", "series_id", "outcome")),
    )
}


COUNTED = (
    "started_us",
    "series_id",
    *(count.field for count in COUNTS),
    *(time.field for time in SUMMARIZED),
    "aborted",
    "error",
)
"""Columns of a turn as far as it is counted."""


_CountedRow = namedtuple("CountedRow", COUNTED)  # type: ignore[misc] # from a list


class StoredCounts(Counted, Protocol):
    """A turn of the store as far as it is counted."""

    @property
    def started_us(self) -> int: ...
    @property
    def series_id(self) -> int: ...


def counted_rows(connection: sqlite3.Connection, where: str, values: Sequence[object] = ()) -> list[StoredCounts]:
    """The turns that ``where`` (all that follows ``FROM turns WHERE``) leaves."""
    columns = select_columns(connection, COUNTED)
    rows = connection.execute(f"SELECT {columns} FROM turns WHERE {where}", values)  # noqa: S608 # built by the caller
    return [cast("StoredCounts", _CountedRow(*row)) for row in rows]


_THREADS = """
INSERT INTO thread_stats
    (thread_id, series_id, turns, bad, first_us, last_us, prompt_tokens, cached_tokens, decode_tokens, total_seconds)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (thread_id, series_id) DO UPDATE SET
    turns = turns + excluded.turns, bad = bad + excluded.bad,
    first_us = min(first_us, excluded.first_us), last_us = max(last_us, excluded.last_us),
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
    decode_tokens = decode_tokens + excluded.decode_tokens, total_seconds = total_seconds + excluded.total_seconds
"""


class RollupCache:
    """Roll-ups as the last transaction left them, so that the next need not read them again.

    Only good while nobody else has committed: SQLite's ``data_version`` tells.
    """

    def __init__(self) -> None:
        self._version: int | None = None
        self._rows: dict[tuple[str, int, tuple[int, ...]], Aggregate] = {}
        self._made: dict[tuple[str, int, tuple[int, ...]], Aggregate] = {}

    def begin(self, connection: sqlite3.Connection) -> None:
        """Call inside a transaction, before any roll-up is asked for."""
        version = int(connection.execute("PRAGMA data_version").fetchone()[0])
        if version != self._version:
            self._version, self._rows = version, {}
        self._made = {}

    def committed(self) -> None:
        """What was made is what the store holds."""
        self._rows = self._made

    def forget(self) -> None:
        """The transaction failed, or somebody changed roll-ups by this connection."""
        self._version, self._rows, self._made = None, {}, {}

    def row(self, connection: sqlite3.Connection, table: str, level: int, key: tuple[int, ...]) -> Aggregate:
        """The roll-up to add to."""
        aggregate = self._rows.get((table, level, key))
        if aggregate is None:
            row = connection.execute(_TABLES[table][0], (level, *key)).fetchone()
            aggregate = Aggregate.load(*row) if row else Aggregate()
        self._made[table, level, key] = aggregate
        return aggregate


def write_rollups(connection: sqlite3.Connection, fresh: Sequence[FreshTurn], cache: RollupCache) -> None:
    """Add turns to their minute, hour, six hours and day. The file's write lock makes reading and writing back safe."""
    cache.begin(connection)
    _merge(connection, "rollups", fresh, lambda turn: (), cache)
    bad = [item for item in fresh if item[0].aborted or item[0].error is not None]
    if bad:
        _merge(connection, "bad_rollups", bad, _outcome, cache)


def fill_bad_rollups(connection: sqlite3.Connection) -> None:
    """The roll-ups of failed and aborted turns of a store that had none yet."""
    rows = counted_rows(connection, "aborted = 1 OR error IS NOT NULL")
    fresh = [(row, row.series_id, row.started_us) for row in rows]
    cache = RollupCache()
    cache.begin(connection)
    _merge(connection, "bad_rollups", fresh, _outcome, cache)


def _outcome(turn: Counted) -> tuple[int, ...]:
    return (turn.aborted + 2 * (turn.error is not None),)


def _merge(
    connection: sqlite3.Connection,
    table: str,
    fresh: Iterable[Fresh],
    more: Callable[[Counted], tuple[int, ...]],
    cache: RollupCache,
) -> None:
    """Add turns to every level of ``table``, whose key ``more`` completes."""
    put = _TABLES[table][1]
    shortest = LEVELS[0]
    minutes: dict[tuple[int, ...], Aggregate] = {}
    for turn, series, started_us in fresh:
        key = (started_us // 1_000_000 // shortest * shortest, series, *more(turn))
        aggregate = minutes.get(key)
        if aggregate is None:
            aggregate = minutes[key] = Aggregate()
        aggregate.add(turn)
    for level in LEVELS:
        merged: dict[tuple[int, ...], Aggregate] = {}
        for (start, *rest), aggregate in minutes.items():
            key = (start // level * level, *rest)
            if key not in merged:
                merged[key] = cache.row(connection, table, level, key)
            merged[key].merge(aggregate)
        connection.executemany(put, [(level, *key, *aggregate.dump()) for key, aggregate in merged.items()])


def write_threads(connection: sqlite3.Connection, fresh: Sequence[FreshTurn]) -> None:
    """Add turns to the statistics of their threads. What is unknown adds nothing."""
    threads: dict[tuple[str, int], list[float]] = {}
    for turn, series, started_us in fresh:
        if turn.thread_id is None:
            continue
        stats = threads.setdefault((turn.thread_id, series), [0, 0, started_us, started_us, 0, 0, 0, 0.0])
        stats[0] += 1
        stats[1] += turn.aborted or turn.error is not None
        stats[2] = min(stats[2], started_us)
        stats[3] = max(stats[3], started_us)
        stats[4] += turn.prompt_tokens or 0
        stats[5] += turn.cached_tokens or 0
        stats[6] += turn.decode_tokens or 0
        stats[7] += turn.total_seconds or 0.0
    if threads:
        connection.executemany(_THREADS, [(*key, *stats) for key, stats in threads.items()])

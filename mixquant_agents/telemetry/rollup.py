"""Keeping roll-ups and thread statistics in step with the turns, inside the transaction that inserts them."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.bins import LEVELS, Aggregate

__all__ = ["Fresh", "write_rollups", "write_threads"]

Fresh = tuple[TurnRecord, int, int]
"""A turn just inserted, its series, its start in microseconds."""

_PUT = """
INSERT OR REPLACE INTO rollups (level, start, series_id, turns, aborted, failed, sums, bins, strata)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_GET = "SELECT turns, aborted, failed, sums, bins, strata FROM rollups WHERE level = ? AND start = ? AND series_id = ?"

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


def write_rollups(connection: sqlite3.Connection, fresh: Sequence[Fresh]) -> None:
    """Add turns to their minute, hour, six hours and day. The file's write lock makes reading and writing back safe."""
    shortest = LEVELS[0]
    minutes: dict[tuple[int, int], Aggregate] = {}
    for turn, series, started_us in fresh:
        key = (started_us // 1_000_000 // shortest * shortest, series)
        aggregate = minutes.get(key)
        if aggregate is None:
            aggregate = minutes[key] = Aggregate()
        aggregate.add(turn)
    for level in LEVELS:
        merged: dict[tuple[int, int], Aggregate] = {}
        for (start, series), aggregate in minutes.items():
            key = (start // level * level, series)
            if key not in merged:
                row = connection.execute(_GET, (level, *key)).fetchone()
                merged[key] = Aggregate.load(*row) if row else Aggregate()
            merged[key].merge(aggregate)
        connection.executemany(_PUT, [(level, *key, *aggregate.dump()) for key, aggregate in merged.items()])


def write_threads(connection: sqlite3.Connection, fresh: Sequence[Fresh]) -> None:
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

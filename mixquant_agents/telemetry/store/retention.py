"""Deleting what is too old or too much: whole turns with all that belongs to them, in short transactions."""

from __future__ import annotations

import math
import sqlite3
import time
from dataclasses import dataclass
from itertools import product

from mixquant_agents.errors import ConfigError
from mixquant_agents.telemetry.store.aggregate import LEVELS, MINUTE

__all__ = ["Retention", "oldest", "retain"]

CHUNK = 2_000
ROLLUPS = ("rollups", "bad_rollups")
_LONGEST_DAYS = 10**6
MINUTES_KEPT_SECONDS = 2 * 86_400
"""Roll-ups per minute are only read for windows of up to a day."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What to keep. ``None`` sets no bound.

    Attributes:
        max_age_days: turns that started earlier are deleted.
        max_bytes: while the file is larger, the oldest turns are deleted.
    """

    max_age_days: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        days, size = self.max_age_days, self.max_bytes
        if days is not None and not (isinstance(days, int | float) and 0 < days < math.inf):
            raise ConfigError(f"max_age_days must be a positive number, or None for any age, not {days!r}")
        if size is not None and not (isinstance(size, int | float) and 1 << 20 <= size < math.inf):
            raise ConfigError(f"max_bytes must be at least 1 MiB (1048576), or None for any size, not {size!r}")


def retain(
    connection: sqlite3.Connection, retention: Retention, *, now: float | None = None, seconds: float = 0.5
) -> int:
    """Delete what ``retention`` does not keep; stops after ``seconds`` so that new turns are not held up (the next call
    goes on). Returns how many turns were deleted."""
    now = time.time() if now is None else now
    deadline, deleted = time.monotonic() + seconds, 0
    for table in ROLLUPS:
        query = f"DELETE FROM {table} WHERE level = ? AND start < ?"  # noqa: S608 # constants
        connection.execute(query, (MINUTE, int(now) - MINUTES_KEPT_SECONDS))
    if retention.max_age_days is not None:
        cutoff = int((now - min(retention.max_age_days, _LONGEST_DAYS) * 86_400) * 1e6)
        while time.monotonic() < deadline and (count := _delete(connection, cutoff)):
            deleted += count
    if retention.max_bytes is not None:
        while time.monotonic() < deadline and (used := _used_bytes(connection)) > retention.max_bytes:
            count = _delete(connection, None, _share(connection, 1 - retention.max_bytes / used))
            if not count:
                break
            deleted += count
    if deleted:
        connection.execute("PRAGMA incremental_vacuum(4000)").fetchall()
    return deleted


def _used_bytes(connection: sqlite3.Connection) -> int:
    size: dict[str, int] = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    }
    return (size["page_count"] - size["freelist_count"]) * size["page_size"]


def _share(connection: sqlite3.Connection, share: float) -> int:
    """About how many turns make up a share of the store, at most a chunk, at least a few."""
    first, last = connection.execute("SELECT min(id), max(id) FROM turns").fetchone()
    return max(20, min(CHUNK, int(share * (last - first + 1)))) if first is not None else CHUNK


def _doomed(connection: sqlite3.Connection, cutoff_us: int | None, chunk: int) -> list[tuple[int, str | None, int]]:
    """``(id, thread, start)`` of what goes next: the first written, or some of those that started before the cutoff.

    Ids grow in the order of writing, which is not that of time where a clock was set: age is asked of the time.
    """
    if cutoff_us is None:
        query = "SELECT id, thread_id, started_us FROM turns ORDER BY id LIMIT ?"
        return connection.execute(query, (chunk,)).fetchall()
    query = (
        "SELECT id, thread_id, started_us FROM turns WHERE series_id = ? AND started_us < ? ORDER BY started_us LIMIT ?"
    )
    rows: list[tuple[int, str | None, int]] = []
    for (series,) in connection.execute("SELECT id FROM series").fetchall():
        if len(rows) < chunk:
            rows += connection.execute(query, (series, cutoff_us, chunk - len(rows))).fetchall()
    return rows


def oldest(connection: sqlite3.Connection) -> int | None:
    """When the oldest turn started, microseconds since the epoch: one step into the index per series."""
    query = "SELECT (SELECT min(started_us) FROM turns WHERE series_id = series.id) FROM series"
    return min((row[0] for row in connection.execute(query) if isinstance(row[0], int)), default=None)


def _delete(connection: sqlite3.Connection, cutoff_us: int | None, chunk: int = CHUNK) -> int:
    """Delete one chunk of the oldest turns (of those before ``cutoff_us``), their spans, contents and statistics."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        expired = _doomed(connection, cutoff_us, chunk)
        ids = [(row[0],) for row in expired]
        for table, column in (("turns", "id"), ("blocks", "turn"), ("contents", "turn")):
            connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", ids)  # noqa: S608 # constants
        if expired:
            first = oldest(connection)
            before = first if first is not None else max(row[2] for row in expired) + 1
            connection.execute(
                "DELETE FROM spans WHERE started_us < ? AND id <= (SELECT min(id) + ? FROM spans)", (before, 4 * CHUNK)
            )
            for table, level in product(ROLLUPS, LEVELS):
                limit = before // 1_000_000 // level * level
                connection.execute(f"DELETE FROM {table} WHERE level = ? AND start < ?", (level, limit))  # noqa: S608 # constants
            _recount_threads(connection, {row[1] for row in expired if row[1] is not None})
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return len(expired)


def _recount_threads(connection: sqlite3.Connection, threads: set[str]) -> None:
    names = [(thread,) for thread in threads]
    for table in ("questions", "scores"):
        connection.executemany(
            f"DELETE FROM {table} WHERE thread_id = ?1 AND NOT EXISTS (SELECT 1 FROM turns WHERE thread_id = ?1)",  # noqa: S608 # constants
            names,
        )
    connection.executemany("DELETE FROM thread_stats WHERE thread_id = ?", names)
    connection.executemany(
        """INSERT INTO thread_stats
        SELECT thread_id, series_id, count(*), sum(aborted OR error IS NOT NULL), min(started_us), max(started_us),
               ifnull(sum(prompt_tokens), 0), ifnull(sum(cached_tokens), 0), ifnull(sum(decode_tokens), 0),
               ifnull(sum(total_seconds), 0.0)
        FROM turns WHERE thread_id = ? GROUP BY thread_id, series_id""",
        names,
    )

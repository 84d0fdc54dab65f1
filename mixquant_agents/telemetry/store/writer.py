"""The store's sink: turns and spans to SQLite, one transaction per batch, roll-ups kept in the same transaction.

What a failed transaction held is kept and tried again (a full disk may get space), up to a bound; beyond it turns are
counted as lost. A turn that is already in the store is not written twice.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mixquant_agents.errors import StoreError
from mixquant_agents.telemetry.events import Event, RunLink, Score, Span, TurnEvent
from mixquant_agents.telemetry.recorder import QUEUE_LIMIT
from mixquant_agents.telemetry.store.connection import connect_writer, explain
from mixquant_agents.telemetry.store.content import pack_content
from mixquant_agents.telemetry.store.fsync import Syncer
from mixquant_agents.telemetry.store.linker import Linker
from mixquant_agents.telemetry.store.prefix_cache import BlockHasher, pack_hashes
from mixquant_agents.telemetry.store.questions import Asked, question_of, write_questions
from mixquant_agents.telemetry.store.retention import Retention, retain
from mixquant_agents.telemetry.store.rollups import RollupCache, write_rollups, write_threads
from mixquant_agents.telemetry.store.rows import INSERT_TURN, SERIES, TurnLinks, row_of, series_of, to_microseconds
from mixquant_agents.telemetry.store.sanitize import sanitize_event, sanitize_value

__all__ = ["Retention", "StoreSink"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

RETRY_SECONDS = 1.0
RETAIN_EVERY_SECONDS = 60.0
SLICE = 4_096
"""Most events of one transaction: it bounds how long other processes wait for the lock."""

_INSERT_SPAN = (
    "INSERT INTO spans (span_id, parent_id, run_id, thread_id, kind, name, started_us, seconds, cancelled, error, "
    "arguments, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PUT_SCORE = (
    "INSERT INTO scores (thread_id, name, score, scored_us, comment) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (thread_id, name) DO UPDATE SET score = excluded.score, scored_us = excluded.scored_us, "
    "comment = excluded.comment WHERE excluded.scored_us >= scored_us"
)


_left_to_parents: list[object] = []
"""What a child inherited from a fork that was not announced; kept so that it is not closed there."""

_NO_EVENT_S_FAULT = (sqlite3.OperationalError, sqlite3.NotSupportedError, StoreError, OSError, MemoryError)


class StoreSink:
    """Writes batches into the store at ``path``; opens it on the first batch."""

    def __init__(self, path: Path, *, retention: Retention | None = None, pending_limit: int = QUEUE_LIMIT) -> None:
        self._path = path
        self._retention = retention
        self._limit = pending_limit
        self._connection: sqlite3.Connection | None = None
        self._syncer: Syncer | None = None
        self._file: tuple[int, int] | None = None
        self._pending: list[Event] = []
        self._lost = 0
        self._series: dict[tuple[object, ...], int] = {}
        self._hasher = BlockHasher(b"")
        self._linker = Linker()
        self._rollups = RollupCache()
        self._next_retain = 0.0
        self._retaining = False

    def lost(self) -> int:
        return self._lost

    def retry_seconds(self) -> float | None:
        return RETRY_SECONDS if self._pending or self._retaining else None

    def write(self, batch: Sequence[Event]) -> None:
        """Write what is pending and ``batch``.

        Raises:
            StoreError: this time it did not work; up to the limit it is kept and tried again.
        """
        self._pending.extend(batch)
        try:
            connection = self._open()
            while self._pending:
                self._write_first(connection, min(SLICE, len(self._pending)))
            if self._retention is not None and time.monotonic() >= self._next_retain:
                self._retaining = True
                self._rollups.forget()
                retain(connection, self._retention)
                self._next_retain, self._retaining = time.monotonic() + RETAIN_EVERY_SECONDS, False
        except BaseException as error:
            self._give_up_beyond_limit()
            if isinstance(error, sqlite3.Error):
                raise explain(error, self._path) from error
            raise

    def _write_first(self, connection: sqlite3.Connection, count: int) -> None:
        """Write the first ``count`` pending events. One that cannot be written must not hold up those around it: it is
        searched for by halves, made writable, and only given up where even that does not help."""
        events = self._pending[:count]
        try:
            self._transaction(connection, events)
        except BaseException as error:  # an event's own code may raise anything
            if isinstance(error, _NO_EVENT_S_FAULT) or type(error) is sqlite3.DatabaseError:
                raise
            if count > 1:
                self._write_first(connection, count // 2)
                self._write_first(connection, count - count // 2)
                return
            try:
                self._transaction(connection, [sanitize_event(events[0])])
            except BaseException as again:
                if isinstance(again, _NO_EVENT_S_FAULT) or type(again) is sqlite3.DatabaseError:
                    raise
                log.warning("telemetry: an event could not be written and is left out: %s", again)
                self._lost += 1
        if self._syncer is not None:
            self._syncer.committed()
        del self._pending[:count]

    def _give_up_beyond_limit(self) -> None:
        over = len(self._pending) - self._limit
        if over > 0:
            self._lost += over
            del self._pending[-over:]  # the older ones stay: they are next in line, and their links came first

    def close(self) -> None:
        self._lost += len(self._pending)
        self._pending.clear()
        self._let_go()

    def sync_delays(self) -> list[float]:
        """Seconds from a commit until the disk had it, of the last commits."""
        return list(self._syncer.delays) if self._syncer is not None else []

    def before_fork(self) -> None:
        """See :mod:`~mixquant_agents.telemetry.fork_safety`."""
        self._let_go()

    def after_fork_in_child(self) -> None:
        """What is pending is the parent's to write."""
        if self._connection is not None:  # the fork was not announced: not to be used here, nor closed
            _left_to_parents.append((self._connection, self._syncer))
            self._connection, self._syncer = None, None
        self._pending.clear()
        self._series.clear()
        self._lost = 0

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._syncer is not None:
            self._syncer.close()
            self._syncer = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or _identity(self._path) != self._file:
            self._let_go()  # the file was deleted or replaced under us: go on in the one that has the name now
            self._series.clear()
            self._rollups.forget()
            connection = connect_writer(self._path)
            salt = connection.execute("SELECT value FROM meta WHERE key = 'block_salt'").fetchone()[0]
            self._hasher, self._syncer = BlockHasher(salt), Syncer(self._path)
            self._connection, self._file = connection, _identity(self._path)
        return self._connection

    def _transaction(self, connection: sqlite3.Connection, events: Sequence[Event]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            unusable = _insert(connection, _INSERT_SPAN, _span_row, [e for e in events if isinstance(e, Span)])
            unusable += _insert(connection, _PUT_SCORE, _score_row, [e for e in events if isinstance(e, Score)])
            unusable += self._turns(connection, events)
            connection.execute("COMMIT")
            self._linker.keep()
            self._rollups.committed()
            self._lost += unusable
        except BaseException:
            self._linker.put_back()
            self._rollups.forget()
            self._series.clear()  # ids given inside the transaction are void
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _turns(self, connection: sqlite3.Connection, events: Sequence[Event]) -> int:
        """Insert the turns among ``events``; how many could not be made into rows (and never will)."""
        known = self._known(connection, [event.turn.turn_id for event in events if isinstance(event, TurnEvent)])
        number = connection.execute("SELECT ifnull(max(id), 0) FROM turns").fetchone()[0]
        rows, fresh, blocks, contents, asked = [], [], [], [], list[Asked]()
        unusable = 0
        for event in events:
            if isinstance(event, RunLink):
                self._linker.link(event)
                continue
            if isinstance(event, Span):
                _guarded(self._linker.span, event)
                continue
            if isinstance(event, Score):
                continue
            turn = event.turn
            if turn.turn_id in known:
                continue
            known.add(turn.turn_id)
            started_us = _guarded(to_microseconds, turn.started_at)
            if started_us is None:
                unusable += 1
                continue
            number += 1
            series = self._series_id(connection, series_of(turn))
            links = self._linker.turn(turn, started_us)
            tool_seconds = links.tool_seconds
            if turn.tool_seconds_before is not None:
                tool_seconds = turn.tool_seconds_before
            links = TurnLinks(*map(sanitize_value, links))
            rows.append(row_of(number, turn, series, started_us, tool_seconds, links, event.trace_id))
            fresh.append((turn, series, started_us))
            hashes = event.block_hashes
            if hashes is None and event.prompt_token_ids is not None:
                hashes = _guarded(self._hasher.hashes, turn.thread_id, event.prompt_token_ids)
            if hashes and (packed := _guarded(pack_hashes, hashes)):
                blocks.append((number, packed))
            if event.content is not None and (packed := _guarded(pack_content, event.content)):
                contents.append((number, packed))
                if turn.thread_id is not None and (question := _guarded(question_of, event.content.messages)):
                    asked.append(Asked(turn.thread_id, started_us, question))
        if not rows:
            return unusable
        connection.executemany(INSERT_TURN, rows)
        if blocks:
            connection.executemany("INSERT INTO blocks (turn, hashes) VALUES (?, ?)", blocks)
        if contents:
            connection.executemany("INSERT INTO contents (turn, packed) VALUES (?, ?)", contents)
        write_questions(connection, asked)
        write_rollups(connection, fresh, self._rollups)
        write_threads(connection, fresh)
        return unusable

    @staticmethod
    def _known(connection: sqlite3.Connection, turn_ids: list[str]) -> set[str]:
        query = "SELECT turn_id FROM turns WHERE turn_id IN (SELECT value FROM json_each(?))"
        return {row[0] for row in connection.execute(query, (json.dumps(turn_ids),))}

    def _series_id(self, connection: sqlite3.Connection, key: tuple[object, ...]) -> int:
        series_id = self._series.get(key)
        if series_id is None:
            where = " AND ".join(f"{name} IS ?" for name in SERIES)
            names = ", ".join(SERIES)
            query = f"INSERT OR IGNORE INTO series ({names}) VALUES ({', '.join('?' * len(SERIES))})"  # noqa: S608 # constants
            connection.execute(query, key)
            row = connection.execute(f"SELECT id FROM series WHERE {where}", key).fetchone()  # noqa: S608 # constants
            series_id = self._series[key] = int(row[0])
        return series_id


def _guarded(make: Callable[..., _T], *arguments: Any) -> _T | None:
    """What ``make`` makes; ``None`` where the event is malformed: one bad event must not hold up those around it."""
    try:
        return make(*arguments)
    except MemoryError:
        raise
    except BaseException:  # also what an object's own ``__str__`` raises
        log.warning("telemetry: an event could not be written and is left out", exc_info=True)
        return None


def _insert(
    connection: sqlite3.Connection, statement: str, row_of_event: Callable[[Any], tuple[object, ...]], events: list[Any]
) -> int:
    """Write a row for each event; how many could not be made into rows (and never will)."""
    rows = [row for event in events if (row := _guarded(row_of_event, event)) is not None]
    if rows:
        connection.executemany(statement, rows)
    return len(events) - len(rows)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has the name now; ``None``: none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _span_row(span: Span) -> tuple[object, ...]:
    if not math.isfinite(span.seconds):
        raise ValueError(f"the span {span.name!r} took {span.seconds} seconds")
    return (
        span.span_id,
        span.parent_id,
        span.run_id,
        span.thread_id,
        span.kind.value,
        span.name,
        to_microseconds(span.started_at),
        span.seconds,
        span.cancelled,
        span.error,
        span.arguments,
        span.result,
    )


def _score_row(score: Score) -> tuple[object, ...]:
    if not math.isfinite(score.score):
        raise ValueError(f"the score {score.name!r} of thread {score.thread_id!r} is {score.score}")
    return score.thread_id, score.name, float(score.score), to_microseconds(score.scored_at), score.comment

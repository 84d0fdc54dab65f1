"""The store's sink: turns and spans to SQLite, one transaction per batch, roll-ups kept in the same transaction.

What a failed transaction held is kept and tried again (a full disk may get space), up to two bounds: beyond
``pending_limit`` events they are counted as lost; beyond :data:`PENDING_BYTES` of prompts and messages turns wait
without theirs. A turn that is already in the store is not written twice.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mixquant_agents.errors import StoreError
from mixquant_agents.records import TurnRecord
from mixquant_agents.telemetry.events import Event, RunLink, Score, Span, TurnEvent
from mixquant_agents.telemetry.recorder import QUEUE_LIMIT
from mixquant_agents.telemetry.store.connection import connect_writer, explain
from mixquant_agents.telemetry.store.content import pack_content
from mixquant_agents.telemetry.store.fsync import Syncer
from mixquant_agents.telemetry.store.linker import Linker
from mixquant_agents.telemetry.store.prefix_cache import BlockHasher, pack_hashes, token_array
from mixquant_agents.telemetry.store.questions import Asked, question_of, write_questions
from mixquant_agents.telemetry.store.retention import Retention, retain
from mixquant_agents.telemetry.store.rollups import RollupCache, write_rollups, write_threads
from mixquant_agents.telemetry.store.rows import INSERT_TURN, SERIES, TurnLinks, row_of, series_of, to_microseconds
from mixquant_agents.telemetry.store.sanitize import sanitize_fields, sanitize_value

__all__ = ["Retention", "StoreSink"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

RETRY_SECONDS = 1.0
MOST_COMPLAINTS = 100
RETAIN_EVERY_SECONDS = 60.0
PENDING_BYTES = 256 << 20
"""Most bytes of prompts and messages that wait while the store cannot be written; a turn itself is some kilobytes."""
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


@dataclass(slots=True)
class _WaitingTurn:
    """A turn with what goes with it as the store keeps it: small, whatever the prompt was.

    Attributes:
        hashes: as in :class:`~mixquant_agents.telemetry.events.TurnEvent`.
        tokens: the prompt's ids, 4 bytes each.
        content: packed messages and answer.
        question: what the turn was asked.
    """

    turn: TurnRecord
    trace_id: str | None
    hashes: Sequence[int] | None = None
    tokens: array[int] | None = None
    content: bytes | None = None
    question: str | None = None

    @property
    def bytes(self) -> int:
        """Of what goes with the turn."""
        return len(self.tokens or ()) * 4 + len(self.hashes or ()) * 8 + len(self.content or b"")


_Waiting = _WaitingTurn | Span | RunLink | Score

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
        self._pending: list[_Waiting] = []
        self._pending_bytes = 0
        self._lost = 0
        self._complaints: set[str] = set()
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
        for event in batch:
            self._take(event)
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

    def _take(self, event: Event) -> None:
        """Have it wait; it is packed here, so that no other process waits for that."""
        if not isinstance(event, TurnEvent):
            self._pending.append(event)
            return
        waiting = _WaitingTurn(event.turn, event.trace_id)
        try:
            self._pack(event, waiting)
        except MemoryError:
            waiting = _WaitingTurn(event.turn, event.trace_id)
        if waiting.bytes + self._pending_bytes > PENDING_BYTES and self._pending:
            self._complain("telemetry: the store cannot be written; further turns wait without prompt and messages")
            waiting = _WaitingTurn(event.turn, event.trace_id)
        self._pending_bytes += waiting.bytes
        self._pending.append(waiting)

    def _pack(self, event: TurnEvent, waiting: _WaitingTurn) -> None:
        content, prompt = event.content, event.prompt_token_ids
        waiting.hashes = event.block_hashes
        if prompt is not None and waiting.hashes is None:
            waiting.tokens = self._guarded(token_array, prompt)
        if content is not None:
            waiting.content = self._guarded(pack_content, content)
            if event.turn.thread_id is not None:
                waiting.question = self._guarded(lambda: question_of(content.messages))

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
                self._transaction(connection, [sanitize_fields(events[0])])
            except BaseException as again:
                if isinstance(again, _NO_EVENT_S_FAULT) or type(again) is sqlite3.DatabaseError:
                    raise
                self._complain(f"telemetry: an event could not be written and is left out: {again}")
                self._lost += 1
        del self._pending[:count]
        self._count_bytes()
        if self._syncer is not None:
            self._syncer.committed()

    def _give_up_beyond_limit(self) -> None:
        over = len(self._pending) - self._limit
        if over > 0:
            self._lost += over
            del self._pending[-over:]  # the older ones stay: they are next in line, and their links came first
            self._count_bytes()

    def _count_bytes(self) -> None:
        self._pending_bytes = sum(event.bytes for event in self._pending if isinstance(event, _WaitingTurn))

    def close(self) -> None:
        if self._pending:
            log.warning("telemetry: %d events could not be written to %s and are lost", len(self._pending), self._path)
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

    def _transaction(self, connection: sqlite3.Connection, events: Sequence[_Waiting]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            unusable = self._insert(connection, _INSERT_SPAN, _span_row, [e for e in events if isinstance(e, Span)])
            unusable += self._insert(connection, _PUT_SCORE, _score_row, [e for e in events if isinstance(e, Score)])
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

    def _turns(self, connection: sqlite3.Connection, events: Sequence[_Waiting]) -> int:
        """Insert the turns among ``events``; how many could not be made into rows (and never will)."""
        known = self._known(connection, [event.turn.turn_id for event in events if isinstance(event, _WaitingTurn)])
        number = connection.execute("SELECT ifnull(max(id), 0) FROM turns").fetchone()[0]
        rows, fresh, blocks, contents, asked = [], [], [], [], list[Asked]()
        unusable = 0
        for event in events:
            if isinstance(event, RunLink):
                self._linker.link(event)
                continue
            if isinstance(event, Span):
                self._guarded(self._linker.span, event)
                continue
            if isinstance(event, Score):
                continue
            turn = event.turn
            if turn.turn_id in known:
                continue
            known.add(turn.turn_id)
            started_us = self._guarded(to_microseconds, turn.started_at)
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
            hashes = event.hashes
            if hashes is None and event.tokens is not None:
                hashes = self._guarded(self._hasher.hashes, turn.thread_id, event.tokens)
            if hashes and (packed := self._guarded(pack_hashes, hashes)):
                blocks.append((number, packed))
            if event.content is not None:
                contents.append((number, event.content))
            if event.question is not None and turn.thread_id is not None:
                asked.append(Asked(turn.thread_id, started_us, event.question))
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

    def _insert(
        self,
        connection: sqlite3.Connection,
        statement: str,
        row_of_event: Callable[[Any], tuple[object, ...]],
        events: list[Any],
    ) -> int:
        """Write a row for each event; how many could not be made into rows (and never will)."""
        rows = [row for event in events if (row := self._guarded(row_of_event, event)) is not None]
        if rows:
            connection.executemany(statement, rows)
        return len(events) - len(rows)

    def _guarded(self, make: Callable[..., _T], *arguments: Any) -> _T | None:
        """What ``make`` makes; ``None`` where the event is malformed: one bad event must not hold up those around
        it."""
        try:
            return make(*arguments)
        except MemoryError:
            raise
        except BaseException as error:  # also what an object's own ``__str__`` raises
            self._complain(f"telemetry: an event, or a part of one, could not be written and is left out: {error!r}")
            return None

    def _complain(self, line: str) -> None:
        """Say it once: what is odd comes with every turn."""
        if line not in self._complaints and len(self._complaints) < MOST_COMPLAINTS:
            self._complaints.add(line)
            log.warning("%s", line, exc_info=log.isEnabledFor(logging.DEBUG))


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

"""The store's sink: turns and spans to SQLite, one transaction per batch, roll-ups kept in the same transaction.

What a failed transaction held is kept and tried again (a full disk may get space), up to a bound; beyond it turns are
counted as lost. A turn that is already in the store is not written twice.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixquant_agents.errors import StoreError
from mixquant_agents.telemetry.connect import connect_writer, default_store_path, explain
from mixquant_agents.telemetry.content import pack_content
from mixquant_agents.telemetry.events import Event, RunLink, Span, TurnEvent
from mixquant_agents.telemetry.linking import Linker
from mixquant_agents.telemetry.prefix import block_hashes, pack_hashes
from mixquant_agents.telemetry.recorder import GATHER_SECONDS, QUEUE_LIMIT, QueueRecorder, Sink
from mixquant_agents.telemetry.retention import Retention, retain
from mixquant_agents.telemetry.rollup import write_rollups, write_threads
from mixquant_agents.telemetry.rows import INSERT_TURN, SERIES, row_of, series_of, to_microseconds

__all__ = ["Retention", "StoreRecorder", "StoreSink"]

RETRY_SECONDS = 1.0
RETAIN_EVERY_SECONDS = 60.0
SLICE = 4_096
"""Most events of one transaction: it bounds how long other processes wait for the lock."""

_INSERT_SPAN = (
    "INSERT INTO spans (span_id, parent_id, run_id, thread_id, kind, name, started_us, seconds, cancelled, error, "
    "arguments, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class StoreSink:
    """Writes batches into the store at ``path``; opens it on the first batch."""

    def __init__(self, path: Path, *, retention: Retention | None = None, pending_limit: int = QUEUE_LIMIT) -> None:
        self._path = path
        self._retention = retention
        self._limit = pending_limit
        self._connection: sqlite3.Connection | None = None
        self._pending: list[Event] = []
        self._lost = 0
        self._series: dict[tuple[object, ...], int] = {}
        self._salt = b""
        self._linker = Linker()
        self._next_retain = 0.0

    def lost(self) -> int:
        return self._lost

    def retry_seconds(self) -> float | None:
        return RETRY_SECONDS if self._pending else None

    def write(self, batch: Sequence[Event]) -> None:
        """Write what is pending and ``batch``.

        Raises:
            StoreError: this time it did not work; up to the limit it is kept and tried again.
        """
        self._pending.extend(batch)
        try:
            connection = self._open()
            while self._pending:
                self._transaction(connection, self._pending[:SLICE])
                del self._pending[:SLICE]
            if self._retention is not None and time.monotonic() >= self._next_retain:
                self._next_retain = time.monotonic() + RETAIN_EVERY_SECONDS
                retain(connection, self._retention)
        except sqlite3.Error as error:
            self._give_up_beyond_limit()
            raise explain(error, self._path) from error
        except StoreError:
            self._give_up_beyond_limit()
            raise

    def _give_up_beyond_limit(self) -> None:
        over = len(self._pending) - self._limit
        if over > 0:
            self._lost += over
            del self._pending[-over:]  # the older ones stay: they are next in line, and their links came first

    def close(self) -> None:
        self._lost += len(self._pending)
        self._pending.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or not self._path.exists():
            if self._connection is not None:  # the file was deleted under us: go on in a new one
                self._connection.close()
            self._series.clear()
            self._connection = connect_writer(self._path)
            self._salt = self._connection.execute("SELECT value FROM meta WHERE key = 'block_salt'").fetchone()[0]
        return self._connection

    def _transaction(self, connection: sqlite3.Connection, events: Sequence[Event]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            spans = [event for event in events if isinstance(event, Span)]
            if spans:
                connection.executemany(_INSERT_SPAN, [_span_row(span) for span in spans])
            self._turns(connection, events)
            connection.execute("COMMIT")
        except BaseException:
            self._series.clear()  # ids given inside the transaction are void
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _turns(self, connection: sqlite3.Connection, events: Sequence[Event]) -> None:
        known = self._known(connection, [event.turn.turn_id for event in events if isinstance(event, TurnEvent)])
        number = connection.execute("SELECT ifnull(max(id), 0) FROM turns").fetchone()[0]
        rows, fresh, blocks, contents = [], [], [], []
        for event in events:
            if isinstance(event, RunLink):
                self._linker.link(event)
                continue
            if isinstance(event, Span):
                self._linker.span(event)
                continue
            turn = event.turn
            if turn.turn_id in known:
                continue
            known.add(turn.turn_id)
            number += 1
            started_us = to_microseconds(turn.started_at)
            series = self._series_id(connection, series_of(turn))
            root, node, tool_seconds = self._linker.turn(turn, started_us)
            if turn.tool_seconds_before is not None:
                tool_seconds = turn.tool_seconds_before
            rows.append(row_of(number, turn, series, started_us, tool_seconds, root, node, event.trace_id))
            fresh.append((turn, series, started_us))
            hashes = event.block_hashes
            if hashes is None and event.prompt_token_ids is not None:
                hashes = block_hashes(event.prompt_token_ids, self._salt)
            if hashes:
                blocks.append((number, pack_hashes(hashes)))
            if event.content is not None:
                contents.append((number, pack_content(event.content)))
        if not rows:
            return
        connection.executemany(INSERT_TURN, rows)
        if blocks:
            connection.executemany("INSERT INTO blocks (turn, hashes) VALUES (?, ?)", blocks)
        if contents:
            connection.executemany("INSERT INTO contents (turn, packed) VALUES (?, ?)", contents)
        write_rollups(connection, fresh)
        write_threads(connection, fresh)

    @staticmethod
    def _known(connection: sqlite3.Connection, turn_ids: list[str]) -> set[str]:
        query = "SELECT turn_id FROM turns WHERE turn_id IN (SELECT value FROM json_each(?))"
        return {row[0] for row in connection.execute(query, (json.dumps(turn_ids),))}

    def _series_id(self, connection: sqlite3.Connection, key: tuple[object, ...]) -> int:
        found = self._series.get(key)
        if found is None:
            where = " AND ".join(f"{name} IS ?" for name in SERIES)
            names = ", ".join(SERIES)
            query = f"INSERT OR IGNORE INTO series ({names}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608 # constants
            connection.execute(query, key)
            row = connection.execute(f"SELECT id FROM series WHERE {where}", key).fetchone()  # noqa: S608 # constants
            found = self._series[key] = int(row[0])
        return found


def _span_row(span: Span) -> tuple[object, ...]:
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


class StoreRecorder(QueueRecorder):
    """Records into a SQLite store, and into further sinks if given.

    The file is opened by the writer thread: a store that cannot be used never fails a turn. Call :meth:`check` to
    have the problem raised before work begins.

    Args:
        path: the store; ``None`` is :func:`default_store_path`.
        content: keep messages, tool arguments and results. Off by default.
        retention: what to delete; ``None`` keeps everything.
        sinks: further sinks, called before the store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        content: bool = False,
        retention: Retention | None = None,
        sinks: Iterable[Sink] = (),
        queue_limit: int = QUEUE_LIMIT,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self.path = Path(path) if path is not None else default_store_path()
        self._store = StoreSink(self.path, retention=retention, pending_limit=queue_limit)
        super().__init__((*sinks, self._store), content=content, queue_limit=queue_limit, gather_seconds=gather_seconds)

    def check(self) -> None:
        """Open the store once, as the writer will.

        Raises:
            StoreError: it cannot be opened or written, with the reason and the remedy.
        """
        connect_writer(self.path).close()

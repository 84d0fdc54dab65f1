"""Reading the store: turns by thread, run, model, policy and time, threads, spans, percentiles, prefix misses.

Read-only by construction: every connection is opened ``mode=ro`` with ``query_only``. One connection per calling
thread, so a long query holds up no other.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixquant_agents.errors import RequestError, StoreError
from mixquant_agents.records import percentile
from mixquant_agents.telemetry.events import SpanKind, TurnContent
from mixquant_agents.telemetry.fork_safety import notify_of_forks
from mixquant_agents.telemetry.store.aggregate import SUMMARIZED
from mixquant_agents.telemetry.store.connection import connect_reader, default_store_path, explain
from mixquant_agents.telemetry.store.content import unpack_content
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.models import Series, StoredScore, StoredSpan, ThreadSummary
from mixquant_agents.telemetry.store.prefix_cache import (
    HASH_BYTES,
    PrefixFinding,
    PrefixSide,
    explain_prefix,
    shared_blocks,
    unpack_hashes,
)
from mixquant_agents.telemetry.store.rows import (
    SERIES,
    UNREADABLE,
    StoredTurn,
    finite_score,
    number,
    text,
    turn_of,
    whole_number,
)
from mixquant_agents.telemetry.store.schema import columns_of, select_columns
from mixquant_agents.telemetry.store.threads import THREAD_ORDERS, ThreadPage, thread_summaries

__all__ = ["THREAD_ORDERS", "Series", "StoredScore", "StoredSpan", "ThreadSummary", "TurnStore"]

_SELECT = (
    f"SELECT turns.*, {', '.join('series.' + name for name in SERIES)} FROM turns JOIN series ON series.id = series_id"  # noqa: S608 # constants
)


_left_to_parents: list[sqlite3.Connection] = []

_SPAN_KINDS = {kind.value: kind for kind in SpanKind}


class _PerThread(threading.local):
    """What each thread has of its own."""

    connection: sqlite3.Connection | None = None


class TurnStore:
    """The turns in a SQLite store, for reading. Safe to use from several threads.

    Args:
        path: the file; ``None`` is the default store.

    Raises:
        StoreError: no such file, not a store, written by a newer version, unreadable.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else default_store_path()
        self._local = _PerThread()
        self._lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        self._in_use: Counter[sqlite3.Connection] = Counter()
        self._readers = 0
        self._closed = False
        notify_of_forks(self)
        with self.reading():
            pass

    def __enter__(self) -> TurnStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; one that a thread is reading with is closed when it has read: SQLite's own memory is
        not safe from closing under a query. Idempotent."""
        with self._lock:
            self._closed = True
            for connection in self._open:
                if connection not in self._in_use:
                    connection.close()
            self._open = [connection for connection in self._open if connection in self._in_use]

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, with SQLite's errors translated."""
        lock = self._lock
        with lock:
            if self._closed:
                raise StoreError(f"turn store {self.path}: it was closed")
            self._readers += 1
            connection = self._local.connection
            if connection is not None:
                self._in_use[connection] += 1
        try:
            if connection is None:
                connection = connect_reader(self.path)
                connection.row_factory = sqlite3.Row
                self._local.connection = connection
                with lock:
                    self._open.append(connection)
                    self._in_use[connection] += 1
            yield connection
        except (sqlite3.Error, UnicodeEncodeError, OverflowError) as error:  # the latter: what no store can hold
            raise explain(error, self.path) from error
        finally:
            if self._lock is lock:  # else this is a child of a fork, whose parent counts
                with lock:
                    self._readers -= 1
                    if connection is not None:
                        self._release(connection)

    def _release(self, connection: sqlite3.Connection) -> None:
        """A reading has ended; call it with the lock held."""
        self._in_use[connection] -= 1
        if not self._in_use[connection]:
            del self._in_use[connection]
            if self._closed:
                connection.close()
                self._open.remove(connection)

    def before_fork(self) -> None:
        """Close connections that are not in use; see :mod:`~mixquant_agents.telemetry.fork_safety`."""
        self._lock.acquire()
        if not self._readers:
            for connection in self._open:
                connection.close()
            self._open.clear()
            self._local = _PerThread()

    def after_fork_in_parent(self) -> None:
        """Connections are opened again when they are needed."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """The same, with a lock of its own; what the parent was reading with is neither used nor closed here."""
        _left_to_parents.extend(self._open)
        self._open, self._readers, self._in_use = [], 0, Counter()
        self._lock, self._local = threading.Lock(), _PerThread()

    def change_counter(self) -> int:
        """A number that changes, for the calling thread, whenever any process committed to the store."""
        with self.reading() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def series(self) -> list[Series]:
        """All combinations of model, engine, policy, formats and device that occur."""
        with self.reading() as connection:
            rows = connection.execute("SELECT * FROM series ORDER BY model, policy, id").fetchall()
        return [_series(row) for row in rows]

    def series_ids(self, turn_filter: TurnFilter) -> list[int] | None:
        """Ids of the series that model, policy and engine of ``turn_filter`` leave; ``None``: all."""
        if turn_filter.model is None and turn_filter.policy is None and turn_filter.engine is None:
            return None
        names = ("model", "policy", "engine")
        conditions = {name: value for name in names if (value := getattr(turn_filter, name)) is not None}
        return [
            entry.id
            for entry in self.series()
            if all(getattr(entry, name) == value for name, value in conditions.items())
        ]

    def turns(
        self, turn_filter: TurnFilter | None = None, *, limit: int = 100, before: int | None = None
    ) -> list[StoredTurn]:
        """The newest turns first. ``before``: go on below this ``number`` (for pages)."""
        turn_filter = turn_filter or TurnFilter()
        where, values = turn_filter.where(self.series_ids(turn_filter))
        if before is not None:
            where += " AND turns.id < ?"
            values.append(before)
        with self.reading() as connection:
            rows = connection.execute(
                f"{_SELECT} WHERE {where} ORDER BY turns.id DESC LIMIT ?", (*values, limit)
            ).fetchall()
        return [turn_of(dict(row)) for row in rows]

    def first_us(self, turn_filter: TurnFilter | None = None) -> int | None:
        """When the first of the chosen turns started, microseconds since the epoch; ``None`` where there is none."""
        turn_filter = turn_filter or TurnFilter()
        where, values = turn_filter.where(self.series_ids(turn_filter))
        with self.reading() as connection:
            row = connection.execute(
                f"SELECT min(started_us) FROM turns WHERE turns.series_id IN (SELECT id FROM series) AND {where}",  # noqa: S608 # as above
                values,
            ).fetchone()
        return row[0] if isinstance(row[0], int) else None

    def turn(self, turn_id: str) -> StoredTurn | None:
        """The turn with this id."""
        with self.reading() as connection:
            row = connection.execute(f"{_SELECT} WHERE turn_id = ?", (turn_id,)).fetchone()
        return turn_of(dict(row)) if row else None

    def thread(self, thread_id: str, *, limit: int = 500) -> list[StoredTurn]:
        """The last ``limit`` turns of a thread, in the order of time."""
        query = f"{_SELECT} WHERE thread_id = ? ORDER BY started_us DESC, turns.id DESC LIMIT ?"
        with self.reading() as connection:
            rows = connection.execute(query, (thread_id, limit)).fetchall()
        return [turn_of(dict(row)) for row in reversed(rows)]

    def threads(
        self,
        turn_filter: TurnFilter | None = None,
        *,
        limit: int = 50,
        offset: int = 0,
        search: str | None = None,
        order: str = "last",
        descending: bool = True,
        failed_tools: bool = False,
    ) -> list[ThreadSummary]:
        """Threads, the one with the newest turn first unless ``order`` says otherwise. Sums cover the chosen series
        (model, policy, engine) of a thread; failed tools and runs are those of the whole thread.

        Args:
            failed_tools: only threads in which a tool failed.
            search: a part of the thread's name or of its first question, in any case.
            order: a name of :data:`THREAD_ORDERS`; what is unknown comes last.

        Raises:
            RequestError: no such order.
        """
        if order not in THREAD_ORDERS:
            raise RequestError(f"threads cannot be ordered by {order!r}; choose one of {', '.join(THREAD_ORDERS)}")
        turn_filter = turn_filter or TurnFilter()
        series_ids = self.series_ids(turn_filter)
        with self.reading() as connection:
            return thread_summaries(
                connection,
                turn_filter,
                series_ids,
                self.series,
                search=search,
                failed_tools=failed_tools,
                page=ThreadPage(order, descending, limit, offset),
            )

    def question(self, thread_id: str) -> str | None:
        """What the first recorded turn of a thread was asked; ``None`` where content was not recorded."""
        with self.reading() as connection:
            row = connection.execute("SELECT question FROM questions WHERE thread_id = ?", (thread_id,)).fetchone()
        return text(row[0]) if row else None

    def scores(self, turn_filter: TurnFilter | None = None, *, limit: int = 20_000) -> list[StoredScore]:
        """The scores of threads that have turns of the chosen series and whose last turn lies in the window, the newest
        ``limit`` threads' first. The outcome of turns chooses threads that have such turns."""
        turn_filter = turn_filter or TurnFilter()
        parts, values = ["1"], list[Any]()
        if turn_filter.thread is not None:
            parts.append("scores.thread_id = ?")
            values.append(turn_filter.thread)
        if turn_filter.run is not None:
            parts.append("scores.thread_id IN (SELECT thread_id FROM turns WHERE root_run_id = ? OR run_id = ?)")
            values += [turn_filter.run, turn_filter.run]
        having = ["1"]
        for condition, instant in (
            ("max(last_us) >= ?", turn_filter.since_us),
            ("max(last_us) < ?", turn_filter.until_us),
        ):
            if instant is not None:
                having.append(condition)
                values.append(instant)
        if turn_filter.status is not None:
            having.append("total(bad) = 0" if turn_filter.status == "ok" else "total(bad) > 0")
        query = (
            "SELECT scores.thread_id, name, score, comment, max(last_us) AS at_us, group_concat(series_id) AS series "  # noqa: S608 # constants
            f"FROM scores JOIN thread_stats USING (thread_id) WHERE {' AND '.join(parts)} "
            f"GROUP BY scores.thread_id, name HAVING {' AND '.join(having)} ORDER BY at_us DESC LIMIT ?"
        )
        series_ids = self.series_ids(turn_filter)
        with self.reading() as connection:
            rows = connection.execute(query, (*values, limit)).fetchall()
        scores = [scored for row in rows if (scored := _stored_score(row)) is not None]
        return [scored for scored in scores if series_ids is None or set(series_ids) & set(scored.series)]

    def spans(self, *, thread: str | None = None, run: str | None = None, limit: int = 2_000) -> list[StoredSpan]:
        """The last ``limit`` spans of a thread or of an agent run, in the order of time."""
        column, value = ("thread_id", thread) if thread is not None else ("run_id", run)
        query = f"SELECT * FROM spans WHERE {column} = ? ORDER BY started_us DESC LIMIT ?"  # noqa: S608 # constants
        with self.reading() as connection:
            rows = connection.execute(query, (value, limit)).fetchall()
        return [span for row in reversed(rows) if (span := _span(row)) is not None]

    def percentiles(
        self, field: str, shares: Sequence[float] = (0.5, 0.95, 0.99), turn_filter: TurnFilter | None = None
    ) -> dict[float, float | None]:
        """Exact percentiles of a time (``"ttft"``, ``"queue"``, ``"prefill"``, ``"decode"``, ``"itl_mean"``,
        ``"total"`` …), seconds. Reads every chosen turn: for large stores prefer
        :func:`~mixquant_agents.telemetry.analysis.overview.overview`.

        Raises:
            StoreError: no such time.
        """
        names = [time.name for time in SUMMARIZED]
        if field not in names:
            raise StoreError(f"no time is called {field!r}; choose one of {', '.join(names)}")
        turn_filter = turn_filter or TurnFilter()
        where, values = turn_filter.where(self.series_ids(turn_filter))
        with self.reading() as connection:
            column = select_columns(connection, (f"{field}_seconds",))
            rows = connection.execute(f"SELECT {column} FROM turns WHERE {where}", values).fetchall()  # noqa: S608 # constants
        seconds = [row[0] for row in rows if row[0] is not None]
        return {share: percentile(seconds, share) for share in shares}

    def content(self, turn: StoredTurn) -> TurnContent | None:
        """Messages and answer, if they were recorded; ``problem`` says why they cannot be read."""
        packed = self.packed_content(turn)
        return None if packed is None else unpack_content(packed)

    def packed_content(self, turn: StoredTurn) -> bytes | None:
        """:meth:`content` as it lies in the store: equal bytes are equal contents."""
        with self.reading() as connection:
            row = connection.execute("SELECT packed FROM contents WHERE turn = ?", (turn.number,)).fetchone()
        return row[0] if row else None

    def block_hashes(self, turn: StoredTurn) -> Sequence[int] | None:
        """Salted hashes of the beginnings of its prompt, one per 16 tokens: equal hashes of one store are equal
        beginnings. ``None`` where they were not recorded."""
        return self._hashes_of(turn.number)

    def predecessor(self, turn: StoredTurn) -> StoredTurn | None:
        """The turn before this one of the same agent in its thread: sub-agents have turns of their own."""
        if turn.thread_id is None:
            return None
        with self.reading() as connection:
            agent = "agent_id" if "agent_id" in columns_of(connection, "turns") else "NULL"
            query = (
                f"{_SELECT} WHERE thread_id = ? AND {agent} IS ? AND started_us < ? ORDER BY started_us DESC LIMIT 1"
            )
            row = connection.execute(query, (turn.thread_id, turn.agent_id, turn.started_us)).fetchone()
        return turn_of(dict(row)) if row else None

    def prefix(self, turn: StoredTurn) -> PrefixFinding | None:
        """Why (or that not) the prefix cache was missed; ``None`` where the block hashes of the turn, or of all before
        it, were not recorded.

        The turn is compared with the earlier one whose prompt has the longest beginning in common with its own: of the
        same thread, or of the latest that ran on the same model under the same policy.
        """
        hashes = self._hashes_of(turn.number)
        if hashes is None:
            return None
        before = self.predecessor(turn)
        expected = before.number if before is not None else None
        with self.reading() as connection:
            candidates = connection.execute(_EARLIER, self._earlier_than(connection, turn)).fetchall()
            # The agent's own turn before may lie behind many of others.
            candidates += connection.execute("SELECT turn, 0, hashes FROM blocks WHERE turn = ?", (expected,))
        best: tuple[int, bool, bool, int] | None = None
        for candidate, same_series, packed in candidates:
            earlier_hashes = _hashes(packed)
            if earlier_hashes is not None:
                # Of equals: what the cache can share, then what a reader expects, then the latest.
                rank = shared_blocks(hashes, earlier_hashes), same_series == 1, candidate == expected, candidate
                best = rank if best is None else max(best, rank)
        if best is None:
            return None
        # Where no prompt begins alike, the agent's own turn before is the one that changed.
        compared = expected if best[0] == 0 and expected is not None else best[3]
        earlier, earlier_hashes = self._turn_by_number(compared), self._hashes_of(compared)
        if earlier is None or earlier_hashes is None:
            return None
        finding = explain_prefix(_side(turn, hashes), _side(earlier, earlier_hashes), first_of_its_agent=before is None)
        if turn.prompt_change is not None:
            finding = replace(finding, reason=f"{finding.reason}; {turn.prompt_change}")
        return finding

    @staticmethod
    def _earlier_than(connection: sqlite3.Connection, turn: StoredTurn) -> tuple[object, ...]:
        """The values of :data:`_EARLIER`."""
        row = connection.execute("SELECT series_id FROM turns WHERE id = ?", (turn.number,)).fetchone()
        series = row[0] if row else None
        in_thread = series, turn.thread_id, turn.started_us, CANDIDATES
        return *in_thread, series, series, turn.started_us, CANDIDATES // 4

    def _turn_by_number(self, number: int) -> StoredTurn | None:
        with self.reading() as connection:
            row = connection.execute(f"{_SELECT} WHERE turns.id = ?", (number,)).fetchone()
        return turn_of(dict(row)) if row else None

    def _hashes_of(self, number: int) -> Sequence[int] | None:
        with self.reading() as connection:
            row = connection.execute("SELECT hashes FROM blocks WHERE turn = ?", (number,)).fetchone()
        return _hashes(row[0]) if row else None


def _stored_score(row: sqlite3.Row) -> StoredScore | None:
    score, at_us = finite_score(row["score"]), whole_number(row["at_us"])
    if score is None or at_us is None:
        return None
    return StoredScore(
        thread_id=text(row["thread_id"]) or UNREADABLE,
        name=text(row["name"]) or UNREADABLE,
        score=score,
        at_us=at_us,
        series=tuple(int(part) for part in str(row["series"]).split(",") if part.isdecimal()),
        comment=text(row["comment"]),
    )


CANDIDATES = 100
"""Most earlier turns of a thread that a prompt is compared with; a quarter as many of any thread."""

_EARLIER = """
SELECT turn, same, hashes FROM (
    SELECT id AS turn, series_id IS ? AS same FROM turns
    WHERE thread_id = ? AND started_us < ? ORDER BY started_us DESC LIMIT ?
) JOIN blocks USING (turn)
UNION
SELECT turn, same, hashes FROM (
    SELECT id AS turn, series_id IS ? AS same FROM turns
    WHERE series_id = ? AND started_us < ? ORDER BY started_us DESC LIMIT ?
) JOIN blocks USING (turn)
"""


def _series(row: sqlite3.Row) -> Series:
    values = dict(row)
    emulated = values.get("emulated")
    return Series(
        id=row["id"],
        model=text(values.get("model")) or UNREADABLE,
        engine=text(values.get("engine")) or UNREADABLE,
        policy=text(values.get("policy")) or UNREADABLE,
        prefill_format=text(values.get("prefill_format")),
        decode_format=text(values.get("decode_format")),
        emulated=None if emulated is None else bool(emulated),
        device=text(values.get("device")),
    )


def _hashes(packed: object) -> Sequence[int] | None:
    """What is packed in a row of ``blocks``; ``None`` where that cannot be read."""
    return unpack_hashes(packed) if isinstance(packed, bytes) and len(packed) % HASH_BYTES == 0 else None


def _side(turn: StoredTurn, hashes: Sequence[int]) -> PrefixSide:
    return PrefixSide(
        turn_id=turn.turn_id,
        hashes=hashes,
        prompt_tokens=turn.prompt_tokens,
        cached_tokens=turn.cached_tokens,
        salted_with=(turn.model, turn.engine, turn.policy),
    )


def _span(row: sqlite3.Row) -> StoredSpan | None:
    """The span of a row; ``None`` where it does not say when it ran. A kind that another version wrote stays as it
    is: it equals none of ours."""
    values = dict(row)
    started_us, seconds = whole_number(values.get("started_us")), number(values.get("seconds"))
    if started_us is None or seconds is None:
        return None
    kind = text(values.get("kind")) or UNREADABLE
    return StoredSpan(
        span_id=text(values.get("span_id")) or UNREADABLE,
        parent_id=text(values.get("parent_id")),
        run_id=text(values.get("run_id")),
        thread_id=text(values.get("thread_id")),
        kind=_SPAN_KINDS.get(kind, kind),
        name=text(values.get("name")) or UNREADABLE,
        started_us=started_us,
        seconds=seconds,
        cancelled=bool(values.get("cancelled")),
        error=text(values.get("error")),
        arguments=text(values.get("arguments")),
        result=text(values.get("result")),
    )

"""The store's schema, as a list of migrations: ``PRAGMA user_version`` is the number of those applied.

A migration that was released is never edited; a change is a new one at the end. Times are microseconds since the epoch
(UTC) or seconds; unknown is NULL.

* ``series``: what turns have in common (model, engine, policy, formats, device), so that a turn refers to it by a small
  number.
* ``turns``: one row per :class:`~mixquant_agents.records.TurnRecord`. Its columns for counts and durations derive from
  :data:`~mixquant_agents.records.COUNTS` and :data:`~mixquant_agents.records.TIMES`: a writer adds those that a store
  lacks, a reader takes them for unknown, and columns that are not known here are left alone. So a new count or phase
  needs no migration.
* ``rollups``: sums and log-binned histograms per minute, hour, six hours and day and series, kept up to date in the
  transaction that inserts the turns; the overview of a million turns reads a few hundred of these rows.
  ``bad_rollups``: the same of failed and aborted turns alone, by ``outcome``: 1 aborted, 2 failed, 3 both.
* ``thread_stats``: the same idea per thread and series, for the list of threads.
* ``spans``: tools, graph nodes, agent runs. An index holds those that failed, which are few: a list of threads counts
  them when it is read.
* ``questions``: what the first recorded turn of a thread was asked, and the same casefolded for search; only with
  content recording on. ``scores``: what a benchmark or a reader said of a thread; the last of a name counts.
* ``blocks``: salted rolling hashes of the prompt, 8 bytes (little endian) per 16 tokens. ``contents``: zlib-packed
  JSON, only with content recording on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from mixquant_agents.records import COUNTS, TIMES

__all__ = [
    "APPLICATION_ID",
    "FAILED_SPANS",
    "MIGRATIONS",
    "OUTCOMES_VERSION",
    "QUESTIONS_VERSION",
    "SCHEMA_VERSION",
    "add_missing_columns",
    "add_missing_index",
    "columns_of",
    "select_columns",
]

_NUMBERS = {count.field for count in COUNTS} | {time.field for time in TIMES}

APPLICATION_ID = 0x4D515453
"""``MQTS`` in the file's header: a foreign database is refused instead of getting our tables."""

_TURNS = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL, engine TEXT NOT NULL, policy TEXT NOT NULL,
    prefill_format TEXT, decode_format TEXT, emulated INTEGER
);
CREATE UNIQUE INDEX series_key ON series
    (model, engine, policy, ifnull(prefill_format, ''), ifnull(decode_format, ''), ifnull(emulated, -1));

CREATE TABLE turns (
    id INTEGER PRIMARY KEY,
    turn_id TEXT NOT NULL, run_id TEXT, root_run_id TEXT, thread_id TEXT, turn_index INTEGER NOT NULL,
    series_id INTEGER NOT NULL REFERENCES series (id), started_us INTEGER NOT NULL,
    prompt_tokens INTEGER, cached_tokens INTEGER, prefill_tokens INTEGER,
    quantized_tokens INTEGER, exact_tokens INTEGER,
    decode_tokens INTEGER, reasoning_tokens INTEGER, recomputed_rows INTEGER, preemptions INTEGER,
    queue_seconds REAL, prefill_seconds REAL, delivery_seconds REAL, ttft_seconds REAL, decode_seconds REAL,
    transfer_seconds REAL, itl_mean_seconds REAL, itl_p50_seconds REAL, itl_p95_seconds REAL, total_seconds REAL,
    timing_source TEXT, tool_seconds_before REAL, finish_reason TEXT, tool_calls TEXT,
    aborted INTEGER NOT NULL, error TEXT, node TEXT, trace_id TEXT, record_version INTEGER NOT NULL
);
CREATE UNIQUE INDEX turns_by_turn ON turns (turn_id);
CREATE INDEX turns_by_thread ON turns (thread_id, started_us) WHERE thread_id IS NOT NULL;
CREATE INDEX turns_by_run ON turns (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX turns_by_root ON turns (root_run_id, started_us) WHERE root_run_id IS NOT NULL;
CREATE INDEX turns_by_series ON turns (series_id, started_us);
CREATE INDEX turns_bad ON turns (started_us) WHERE aborted = 1 OR error IS NOT NULL;

CREATE TABLE rollups (
    level INTEGER NOT NULL, start INTEGER NOT NULL, series_id INTEGER NOT NULL,
    turns INTEGER NOT NULL, aborted INTEGER NOT NULL, failed INTEGER NOT NULL,
    sums TEXT NOT NULL, bins TEXT NOT NULL, strata TEXT NOT NULL,
    PRIMARY KEY (level, start, series_id)
) WITHOUT ROWID;

CREATE TABLE thread_stats (
    thread_id TEXT NOT NULL, series_id INTEGER NOT NULL,
    turns INTEGER NOT NULL, bad INTEGER NOT NULL, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, decode_tokens INTEGER NOT NULL,
    total_seconds REAL NOT NULL,
    PRIMARY KEY (thread_id, series_id)
) WITHOUT ROWID;
CREATE INDEX thread_stats_by_time ON thread_stats (last_us);
CREATE INDEX thread_stats_by_series ON thread_stats (series_id, last_us);

CREATE TABLE spans (
    id INTEGER PRIMARY KEY,
    span_id TEXT NOT NULL, parent_id TEXT, run_id TEXT, thread_id TEXT,
    kind TEXT NOT NULL, name TEXT NOT NULL, started_us INTEGER NOT NULL, seconds REAL NOT NULL,
    cancelled INTEGER NOT NULL, error TEXT, arguments TEXT, result TEXT
);
CREATE INDEX spans_by_thread ON spans (thread_id, started_us) WHERE thread_id IS NOT NULL;
CREATE INDEX spans_by_run ON spans (run_id) WHERE run_id IS NOT NULL;
"""

_PREFIX_AND_CONTENT = """
CREATE TABLE blocks (turn INTEGER PRIMARY KEY, hashes BLOB NOT NULL);
CREATE TABLE contents (turn INTEGER PRIMARY KEY, packed BLOB NOT NULL);
INSERT INTO meta (key, value) VALUES ('block_salt', randomblob(32));
"""

_DEVICE_AND_OUTCOMES = """
ALTER TABLE series ADD COLUMN device TEXT;
DROP INDEX series_key;
CREATE UNIQUE INDEX series_key ON series
    (model, engine, policy, ifnull(prefill_format, ''), ifnull(decode_format, ''), ifnull(emulated, -1),
     ifnull(device, ''));
CREATE TABLE bad_rollups (
    level INTEGER NOT NULL, start INTEGER NOT NULL, series_id INTEGER NOT NULL, outcome INTEGER NOT NULL,
    turns INTEGER NOT NULL, aborted INTEGER NOT NULL, failed INTEGER NOT NULL,
    sums TEXT NOT NULL, bins TEXT NOT NULL, strata TEXT NOT NULL,
    PRIMARY KEY (level, start, series_id, outcome)
) WITHOUT ROWID;
"""
OUTCOMES_VERSION = 3
"""The version that brought ``bad_rollups``, which are filled from the turns."""

_QUESTIONS_AND_SCORES = """
CREATE TABLE questions (
    thread_id TEXT PRIMARY KEY, asked_us INTEGER NOT NULL, question TEXT NOT NULL, folded TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE scores (
    thread_id TEXT NOT NULL, name TEXT NOT NULL, score REAL NOT NULL, scored_us INTEGER NOT NULL, comment TEXT,
    PRIMARY KEY (thread_id, name)
) WITHOUT ROWID;
"""
QUESTIONS_VERSION = 4
"""The version that brought ``questions``, which are filled from the contents."""

MIGRATIONS: tuple[str, ...] = (_TURNS, _PREFIX_AND_CONTENT, _DEVICE_AND_OUTCOMES, _QUESTIONS_AND_SCORES)
SCHEMA_VERSION = len(MIGRATIONS)


def columns_of(connection: sqlite3.Connection, table: str) -> set[str]:
    """Names of the columns that a table has in this store."""
    return {row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}


def select_columns(connection: sqlite3.Connection, names: Iterable[str]) -> str:
    """Columns of ``turns`` for a SELECT. What this store lacks is NULL, and so is a count or duration that is no
    number from 0 on: SQLite keeps any value in any column."""
    present = columns_of(connection, "turns")

    def column(name: str) -> str:
        if name not in present:
            return f"NULL AS {name}"
        if name == "aborted":
            return "ifnull(aborted = 1, 0) AS aborted"
        if name in _NUMBERS:
            return f"iif(typeof({name}) IN ('integer', 'real') AND {name} BETWEEN 0 AND 9e18, {name}, NULL) AS {name}"
        return name

    return ", ".join(map(column, names))


def add_missing_columns(connection: sqlite3.Connection) -> None:
    """Give ``turns`` a column for every count and duration of a record, and for what is known beside one. Call it
    inside a transaction."""
    present = columns_of(connection, "turns")
    columns = {
        **{count.field: "INTEGER" for count in COUNTS},
        **{time.field: "REAL" for time in TIMES},
        "prompt_change": "TEXT",
        "storage": "TEXT",
        "parent_id": "TEXT",
        "agent_id": "TEXT",
    }
    for name, kind in columns.items():
        if name not in present:
            connection.execute(f"ALTER TABLE turns ADD COLUMN {name} {kind}")


FAILED_SPANS = "thread_id IS NOT NULL AND error IS NOT NULL AND cancelled = 0"
"""SQL: a tool, node or agent run of a thread that failed. A query in these words is served by an index."""


def add_missing_index(connection: sqlite3.Connection) -> None:
    """Give ``spans`` the index of those that failed. A store without it is read as well, only more slowly, so that it
    needs no migration. Call it inside a transaction."""
    connection.execute(f"CREATE INDEX IF NOT EXISTS spans_failed ON spans (thread_id) WHERE {FAILED_SPANS}")

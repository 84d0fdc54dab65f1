"""Foreign, damaged, older and newer stores: refused in clear words, or migrated with every turn."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from telemetry_help import at, make_turn, old_store

from mixquant_agents.errors import StoreError
from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.analysis.collect import collect
from mixquant_agents.telemetry.store.connection import connect_reader, connect_writer
from mixquant_agents.telemetry.store.filters import TurnFilter
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import SERIES, to_microseconds
from mixquant_agents.telemetry.store.schema import MIGRATIONS, SCHEMA_VERSION

pytestmark = pytest.mark.slow


def test_newer_store_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    connection = connect_writer(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 5}")
    connection.close()
    before = path.read_bytes()
    for opening in (lambda: TurnStore(path), lambda: StoreRecorder(path).check()):
        with pytest.raises(StoreError, match=rf"newer mixquant-agents \(schema {SCHEMA_VERSION + 5}.*upgrade"):
            opening()
    recorder = StoreRecorder(path)
    recorder.record(make_turn())
    assert recorder.flush(0.5) is False
    assert "newer mixquant-agents" in (recorder.problem or "")
    recorder.close()
    assert recorder.dropped == 1
    assert path.read_bytes() == before


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"not a database" * 100)
    for path, words in ((foreign, "another program's"), (garbage, "not a SQLite database")):
        for opening in (connect_reader, connect_writer):
            with pytest.raises(StoreError, match=words):
                opening(path)
    with pytest.raises(StoreError, match="no such file"):
        TurnStore(tmp_path / "missing.sqlite")
    with pytest.raises(StoreError, match="is a folder; give the file"):
        TurnStore(tmp_path)
    with pytest.raises(StoreError, match="is a folder; give the file"):
        StoreRecorder(tmp_path).check()
    for name, words in (("x" * 300, "File name too long"), ("a\0b", "no file can have this name")):
        with pytest.raises(StoreError, match=words):
            StoreRecorder(tmp_path / name).check()
    with pytest.raises(StoreError, match="File name too long"):
        TurnStore(tmp_path / ("x" * 300))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match="folder"):
        StoreRecorder(file / "turns.sqlite").check()


def test_old_store_is_migrated_with_its_turns(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    with closing(old_store(path, 1)) as connection:
        connection.execute("INSERT INTO series (id, model, engine, policy) VALUES (1, 'm', 'vllm', 'exact')")
        connection.execute(
            "INSERT INTO turns (turn_id, turn_index, series_id, started_us, aborted, record_version) "
            "VALUES ('old', 0, 1, 1, 0, 1)"
        )
    with pytest.raises(StoreError, match="older schema 1"):
        TurnStore(path)
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="new"), prompt_token_ids=list(range(32)))
    recorder.close()
    assert recorder.problem is None
    assert {turn.turn_id for turn in TurnStore(path).turns()} == {"old", "new"}


def test_failures_are_rolled_up_when_a_store_of_the_version_before_is_opened(tmp_path: Path) -> None:
    """Schema 2 had no roll-ups by outcome and no device; an old program may still have the file open."""
    new, old = tmp_path / "new.sqlite", tmp_path / "old.sqlite"
    turns = [
        make_turn(n * 3600, error="x" if n % 7 == 0 else None, aborted=n % 5 == 0, policy=f"p{n % 2}", device=None)
        for n in range(120)
    ]
    recorder = StoreRecorder(new)
    for turn in turns:
        recorder.record(turn)
    recorder.close()
    with closing(old_store(old, 2)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("ATTACH ? AS new", (str(new),))
        connection.execute(f"INSERT INTO series SELECT {', '.join(('id', *SERIES[:-1]))} FROM new.series")  # noqa: S608 # our names
        for table in ("turns", "rollups", "thread_stats"):
            columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
            connection.execute(f"INSERT INTO {table} SELECT {columns} FROM new.{table}")  # noqa: S608 # our names
        connection.execute("DETACH new")
        reading = connection.execute("SELECT turn_id FROM turns ORDER BY id")  # an old reader in the middle of reading
        first = reading.fetchone()
        connect_writer(old).close()
        assert len([first, *reading]) == 120, "it reads on"
        names = "(model, engine, policy, prefill_format, decode_format, emulated)"
        connection.execute(f"INSERT OR IGNORE INTO series {names} VALUES ('m', 'vllm', 'p', NULL, NULL, NULL)")  # noqa: S608 # our names
        assert connection.execute("SELECT count(*) FROM series").fetchone()[0] == 3, "and an old writer writes on"
    now = to_microseconds(at(120 * 3600)) / 1e6
    for status in ("bad", "failed", "aborted", "ok", None):
        one, other = (collect(TurnStore(path), TurnFilter(status=status), now=now) for path in (new, old))  # type: ignore[arg-type] # names of statuses
        assert one.total().turns == other.total().turns > 0
    query = "SELECT * FROM bad_rollups ORDER BY level, start, series_id, outcome"
    with closing(sqlite3.connect(new)) as one, closing(sqlite3.connect(old)) as other:
        rolled, again = (connection.execute(query).fetchall() for connection in (one, other))
    assert [row[:7] for row in rolled] == [row[:7] for row in again]
    assert len(rolled) > 100


def test_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "turns.sqlite"
    connect_writer(path).close()
    broken = (*MIGRATIONS, "CREATE TABLE half (x); CREATE TABLE turns (again);")
    monkeypatch.setattr("mixquant_agents.telemetry.store.connection.MIGRATIONS", broken)
    monkeypatch.setattr("mixquant_agents.telemetry.store.connection.SCHEMA_VERSION", len(broken))
    with pytest.raises(StoreError):
        connect_writer(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        assert not connection.execute("SELECT * FROM sqlite_master WHERE name = 'half'").fetchall()
    connection.close()

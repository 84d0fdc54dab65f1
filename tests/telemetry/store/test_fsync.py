"""Power cuts, simulated: what the disk was told to sync is there; of what was written since, any part may be.

A disk that loses power keeps what an fsync returned for. Whatever was written after it may have arrived in any order,
in pieces of a sector, or as zeros where a file had grown. So: files as they were at the last sync, a random part of
the sectors as they were at the cut, and the file's end anywhere. The store made of them must open undamaged, hold every
turn that was synced, hold no turn halfway, and take new ones. What this cannot show: a disk that answers an fsync
before it has the data, and a file system that loses more than what was written since.
"""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from telemetry_help import make_turn

from mixquant_agents.telemetry import Span, SpanKind, StoreRecorder
from mixquant_agents.telemetry.store import fsync as fsync_module
from mixquant_agents.telemetry.store.connection import connect_writer
from mixquant_agents.telemetry.store.reader import TurnStore

pytestmark = pytest.mark.slow

SECTOR = 512
LOG_HEAD = 32


@dataclass(frozen=True, repr=False)
class Cut:
    """What lay on the disk for certain, what had been written beyond it, and the turns that must be found."""

    synced: dict[str, bytes]
    written: dict[str, bytes]
    must: frozenset[str]


def files(path: Path) -> dict[str, bytes]:
    """Database and log. The shared memory is not for the disk: SQLite makes it anew."""
    return {end: Path(f"{path}{end}").read_bytes() for end in ("", "-wal") if Path(f"{path}{end}").exists()}


def record(recorder: StoreRecorder, name: str, count: int, batch: int = 7) -> set[str]:
    """Turns and spans, in several transactions."""
    turns = {f"{name}-{n}" for n in range(count)}
    for n, turn in enumerate(sorted(turns)):
        recorder.record(make_turn(turn_id=turn, thread_id=f"{name}-{n % 3}"), prompt_token_ids=list(range(200)))
        if n % batch == batch - 1:
            assert recorder.flush(30)
    recorder.record_span(
        Span(kind=SpanKind.TOOL, name="t", span_id=name, started_at="2026-03-01T12:00:00Z", seconds=1, thread_id=name)
    )
    assert recorder.flush(30)
    return turns


@pytest.fixture(scope="module")
def synced_logs() -> Iterator[list[bytes]]:
    """The log's content at each sync, as the syncer asks the system for them."""
    kept: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("-wal"):
            kept.append(os.pread(descriptor, 1 << 30, 0))
        real(descriptor)

    patch = pytest.MonkeyPatch()
    patch.setattr(fsync_module.os, "fsync", fsync)
    yield kept
    patch.undo()


def settled(kept: list[bytes], path: Path) -> bytes:
    """The log, once all of it is synced."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if kept and kept[-1] == Path(f"{path}-wal").read_bytes():
            return kept[-1]
        time.sleep(0.01)
    raise AssertionError("what was committed was not synced within 30 seconds")


@pytest.fixture(scope="module")
def cuts(synced_logs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cut]:
    """Moments of a store's life at which power may fail."""
    folder = tmp_path_factory.mktemp("power")
    path = folder / "turns.sqlite"
    recorder = StoreRecorder(path)
    first = record(recorder, "first", 20)
    log = settled(synced_logs, path)
    base = {**files(path), "-wal": log}
    record(recorder, "second", 30)
    grown = files(path)
    assert len(grown["-wal"]) > len(log)
    found = {"writing": Cut(base, grown, frozenset(first))}

    log = settled(synced_logs, path)
    both = frozenset(f"{name}-{n}" for name, count in (("first", 20), ("second", 30)) for n in range(count))
    before = {**files(path), "-wal": log}
    with closing(sqlite3.connect(path)) as connection:
        busy, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert busy == 0
        assert pages == moved > 0
    after = files(path)
    assert after[""] != before[""]
    assert after["-wal"] == log
    # A checkpoint syncs the log, then writes the database, then syncs that.
    found["moving the log into the database"] = Cut(before, {**after, "-wal": log}, both)

    record(recorder, "third", 10)  # written over the log's beginning, for all of it was moved
    again = files(path)
    assert again[""] == after[""]
    assert again["-wal"] != log
    # SQLite syncs the new head of a log before it writes anything behind it (seen with strace): what is left of the old
    # log can then not be taken for the new one.
    head = again["-wal"][:LOG_HEAD] + log[LOG_HEAD:]
    found["beginning the log anew"] = Cut({**after, "-wal": head}, again, both)
    recorder.close()
    return found


def at_the_cut(cut: Cut, folder: Path, rng: random.Random, arrived: float, rest: str) -> Path:
    """Write the files as a power cut may leave them."""
    path = folder / "turns.sqlite"
    for end, whole in cut.written.items():
        safe = cut.synced.get(end, b"")
        size = rng.randint(min(len(safe), len(whole)), max(len(safe), len(whole)))
        made = bytearray(safe[:size].ljust(size, b"\0"))
        for start in range(0, size, SECTOR):
            stop = min(start + SECTOR, size)
            if whole[start:stop] != safe[start:stop]:
                if rng.random() < arrived:
                    made[start:stop] = whole[start:stop].ljust(stop - start, b"\0")
                elif rest == "noise" and start >= len(safe):
                    made[start:stop] = rng.randbytes(stop - start)
        Path(f"{path}{end}").write_bytes(made)
    return path


@pytest.mark.parametrize("moment", ["writing", "moving the log into the database", "beginning the log anew"])
@given(
    seed=st.integers(0, 2**32), arrived=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    rest=st.sampled_from(["zeros", "noise"]),
)  # fmt: skip
def test_power_cut_keeps_what_was_synced(
    cuts: dict[str, Cut], moment: str, seed: int, arrived: float, rest: str
) -> None:
    cut = cuts[moment]
    with tempfile.TemporaryDirectory() as folder:
        path = at_the_cut(cut, Path(folder), random.Random(seed), arrived, rest)  # noqa: S311 # not secrets
        connect_writer(path).close()
        with TurnStore(path) as store, store.reading() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            found = {row[0] for row in connection.execute("SELECT turn_id FROM turns")}
            for level in (60, 3_600, 21_600, 86_400):
                query = "SELECT sum(turns) FROM rollups WHERE level = ?"
                assert connection.execute(query, (level,)).fetchone()[0] == len(found), "whole transactions only"
        assert cut.must <= found
        recorder = StoreRecorder(path)
        recorder.record(make_turn(turn_id="after"))
        recorder.close()
        assert recorder.problem is None
        with TurnStore(path) as store:
            assert store.turn("after") is not None


@pytest.mark.parametrize("moment", ["writing", "moving the log into the database", "beginning the log anew"])
def test_simulation_can_fail(cuts: dict[str, Cut], tmp_path: Path, moment: str) -> None:
    """Without the last sync turns are lost: the cuts do reach what they are about."""
    cut = cuts[moment]
    unsynced = {"": cut.synced[""], "-wal": b""}
    path = at_the_cut(Cut(unsynced, unsynced, cut.must), tmp_path, random.Random(1), 0.0, "zeros")  # noqa: S311
    connect_writer(path).close()
    with TurnStore(path) as store, store.reading() as connection:
        found = {row[0] for row in connection.execute("SELECT turn_id FROM turns")}
    assert (cut.must <= found) is (moment == "beginning the log anew")


def test_batch_is_synced_soon(tmp_path: Path) -> None:
    """From commit to disk; how long the disk takes is its own affair, and told."""
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    for n in range(5):
        recorder.record(make_turn(turn_id=f"t{n}"))
        assert recorder.flush(30)
        deadline = time.monotonic() + 30
        while len(recorder.sync_delays()) <= n and time.monotonic() < deadline:
            time.sleep(0.005)
    delays = recorder.sync_delays()
    recorder.close()
    assert len(delays) >= 5
    assert all(delay >= 0 for delay in delays)


def test_store_behind_a_link_is_synced_too(synced_logs: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    connect_writer(tmp_path / "real" / "turns.sqlite").close()
    link = tmp_path / "link.sqlite"
    link.symlink_to(tmp_path / "real" / "turns.sqlite")
    recorder = StoreRecorder(link)
    recorder.record(make_turn())
    assert recorder.flush(30)
    settled(synced_logs, tmp_path / "real" / "turns.sqlite")
    recorder.close()
    assert len(TurnStore(link).turns()) == 1


def test_new_store_gets_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is synced no file has the store's name, so that a cut leaves none or a whole one."""
    path, seen = tmp_path / "turns.sqlite", []
    real = os.link

    def link(made: Path, name: Path) -> None:
        assert not path.exists()
        with closing(sqlite3.connect(made)) as connection:
            seen.append(connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0])
        real(made, name)

    monkeypatch.setattr(os, "link", link)
    connect_writer(path).close()
    assert seen
    assert seen[0] > 5
    assert [file.name for file in tmp_path.iterdir()] == ["turns.sqlite"]


def test_store_is_made_in_place_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    recorder.record(make_turn())
    recorder.close()
    assert recorder.problem is None
    assert len(TurnStore(tmp_path / "turns.sqlite").turns()) == 1
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]

"""A store is its owner's alone: the file, its log and shared memory, and the folder made for it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from telemetry_help import make_turn, stored

from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.store import TurnStore, default_store_path


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


@pytest.mark.parametrize("content", [False, True])
def test_new_store_and_its_folders_are_private(tmp_path: Path, content: bool) -> None:
    path = tmp_path / "one" / "two" / "turns.sqlite"
    recorder = StoreRecorder(path, content=content)
    recorder.record(make_turn())
    assert recorder.flush()
    with TurnStore(path) as store:
        assert store.turns()
        assert modes(path.parent) == dict.fromkeys(("turns.sqlite", "turns.sqlite-wal", "turns.sqlite-shm"), 384)
    recorder.close()
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in path.parents[:2]] == [0o700, 0o700]


def test_store_made_in_place_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    stored(tmp_path / "turns.sqlite", make_turn()).close()
    assert set(modes(tmp_path).values()) == {0o600}


def test_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    stored(tmp_path / "turns.sqlite", make_turn()).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def older(path: Path) -> None:
    """A store as versions before left it: open to all, and not told to be private."""
    import sqlite3
    from contextlib import closing

    stored(path, make_turn(turn_id="before")).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM meta WHERE key = 'made_private'")
    for file in path.parent.iterdir():
        file.chmod(0o644)
    path.parent.chmod(0o755)


def test_older_store_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    older(path)
    recorder = StoreRecorder(path)
    recorder.record(make_turn())
    assert recorder.flush()
    assert set(modes(tmp_path).values()) == {0o600}
    recorder.close()
    assert len(TurnStore(path).turns()) == 2


def test_store_behind_a_link_is_tightened(tmp_path: Path) -> None:
    path = tmp_path / "real" / "turns.sqlite"
    older(path)
    (tmp_path / "link.sqlite").symlink_to(path)
    stored(tmp_path / "link.sqlite", make_turn()).close()
    assert set(modes(path.parent).values()) == {0o600}


def test_folder_of_the_default_store_is_tightened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIXQUANT_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = default_store_path()
    assert path.is_relative_to(tmp_path)
    older(path)
    stored(path, make_turn()).close()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_store_opened_to_others_on_purpose_is_left_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "turns.sqlite"
    stored(path, make_turn()).close()
    path.chmod(0o660)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            stored(path, make_turn()).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    words = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len([word for word in words if "is open to others (mode 660)" in word]) == 1


def test_file_of_another_program_keeps_its_mode(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    from mixquant_agents.errors import StoreError

    path = tmp_path / "theirs.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    path.chmod(0o644)
    with pytest.raises(StoreError, match="another program"):
        StoreRecorder(path).check()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

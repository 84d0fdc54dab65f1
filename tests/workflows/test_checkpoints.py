"""A graph's state in a file: whose it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mixquant_agents import MixQuantError
from mixquant_workflows.checkpoints import SqliteCheckpoints


def test_new_checkpoints_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        checkpoints = SqliteCheckpoints(tmp_path / "state.sqlite")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
        checkpoints.close()
        SqliteCheckpoints(":memory:").close()
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}


def test_checkpoints_that_exist_keep_their_mode(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.touch()
    path.chmod(0o660)
    SqliteCheckpoints(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(MixQuantError, match="name a writable SQLite file"):
        SqliteCheckpoints(tmp_path / "missing" / "state.sqlite")

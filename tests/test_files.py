"""Results are written as a whole or not at all, over no turn store; what is read is JSON, or an error that says why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mixquant_agents.errors import ConfigError
from mixquant_agents.files import DATABASE, json_in, write_whole


def test_file_is_written_with_its_folders_its_mode_and_behind_its_link(tmp_path: Path) -> None:
    file = tmp_path / "new" / "result.json"
    write_whole(file, "first \ud800")
    assert file.read_text() == "first \\ud800"
    file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    write_whole(link, "second")
    assert link.is_symlink()
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("second", 0o640)
    assert os.listdir(file.parent) == ["result.json"]


def test_full_disk_costs_no_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "result.json"
    file.write_text("of hours of work")
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        ConfigError, match=r"result\.json cannot be written: No space left on device; name another file"
    ):
        write_whole(file, "new")
    monkeypatch.setattr(Path, "replace", replace)
    assert file.read_text() == "of hours of work"
    assert os.listdir(tmp_path) == ["result.json"]


def test_turn_store_is_not_written_over(tmp_path: Path) -> None:
    store = tmp_path / "turns.sqlite"
    store.write_bytes(DATABASE + b"turns")
    with pytest.raises(ConfigError, match="would be lost; name another file"):
        write_whole(store, "{}")
    assert store.read_bytes() == DATABASE + b"turns"


@pytest.mark.parametrize("name", ["", "folder", "file/x", "x" * 300])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written: .*; name another file"):
        write_whole(tmp_path / name, "{}")


def test_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    """So is a device: a file that is put in the place of ``/dev/null`` harms the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "{}")
    assert os.read(reader, 10) == b"{}"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "is not JSON"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (None, "cannot be read: No such"),
    ],
)
def test_file_that_holds_no_json_is_told(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "given.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"--steps .*given\.json {words}"):
        json_in(file, "--steps")

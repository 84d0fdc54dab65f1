"""The cache of whole-or-absent folders, on small synthetic content."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from mixquant_agents.embedded.store import MANIFEST, cache_root, ensure, intact
from mixquant_agents.errors import ConfigError, EngineStartError

PARTS = {"recipe": 1}


def quiet(stage: str, share: float) -> None:
    """No progress."""


class Builder:
    """Writes a small file and one that is sampled rather than hashed whole; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: pathlib.Path) -> None:
        self.calls += 1
        (folder / "config.json").write_text("{}")
        (folder / "weights.bin").write_bytes(os.urandom(1024) * 2048)


def test_builds_once_then_reuses(tmp_path: pathlib.Path) -> None:
    build = Builder()
    first = ensure(tmp_path, "m", PARTS, build, quiet)
    second = ensure(tmp_path, "m", PARTS, build, quiet)
    assert first == second
    assert build.calls == 1
    assert sorted(path.name for path in first.iterdir()) == ["config.json", MANIFEST, "weights.bin"]


def test_every_part_changes_the_key(tmp_path: pathlib.Path) -> None:
    base = {"source": {"version": "1"}, "adapter": None, "template": "t", "recipe": 1}
    changed = [{**base, key: "other"} for key in base]
    folders = {ensure(tmp_path, "m", parts, Builder(), quiet) for parts in [base, *changed]}
    assert len(folders) == 1 + len(base)


def _truncate(folder: pathlib.Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(1000)


def _flip(folder: pathlib.Path) -> None:
    """One byte between two samples: only the whole hash can see it, and the changed time asks for it."""
    with (folder / "weights.bin").open("r+b") as file:
        file.seek(40_000)
        byte = file.read(1)
        file.seek(40_000)
        file.write(bytes([byte[0] ^ 1]))


def _flip_sampled_keeping_time(folder: pathlib.Path) -> None:
    path = folder / "weights.bin"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _no_manifest(folder: pathlib.Path) -> None:
    (folder / MANIFEST).unlink()


def _bad_manifest(folder: pathlib.Path) -> None:
    (folder / MANIFEST).write_text('{"files": ')


def _empty_manifest(folder: pathlib.Path) -> None:
    (folder / MANIFEST).write_text('{"files": {}}')


def _missing_file(folder: pathlib.Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip, _flip_sampled_keeping_time, _no_manifest, _bad_manifest, _empty_manifest, _missing_file],
)
def test_damage_is_found_and_rebuilt(tmp_path: pathlib.Path, damage: object) -> None:
    build = Builder()
    folder = ensure(tmp_path, "m", PARTS, build, quiet)
    damage(folder)  # type: ignore[operator]
    assert not intact(folder)
    assert ensure(tmp_path, "m", PARTS, build, quiet) == folder
    assert build.calls == 2
    assert intact(folder)


def test_copy_with_other_times_is_intact(tmp_path: pathlib.Path) -> None:
    folder = ensure(tmp_path, "m", PARTS, Builder(), quiet)
    os.utime(folder / "weights.bin", (1, 1))
    assert intact(folder)


def test_full_disk_leaves_nothing_and_says_so(tmp_path: pathlib.Path) -> None:
    def build(folder: pathlib.Path) -> None:
        (folder / "weights.bin").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EngineStartError, match=r"No space left.*free 1 GB.*MIXQUANT_CACHE"):
        ensure(tmp_path, "m", PARTS, build, quiet)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_failed_rebuild_keeps_no_damaged_copy_alive(tmp_path: pathlib.Path) -> None:
    folder = ensure(tmp_path, "m", PARTS, Builder(), quiet)
    _truncate(folder)

    def fail(_: pathlib.Path) -> None:
        raise OSError(errno.EIO, "gone")

    with pytest.raises(EngineStartError):
        ensure(tmp_path, "m", PARTS, fail, quiet)
    assert not intact(folder)


def test_root_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineStartError, match="MIXQUANT_CACHE"):
        ensure(tmp_path / "file" / "cache", "m", PARTS, Builder(), quiet)


def test_cache_root_from_the_environment(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXQUANT_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    monkeypatch.setenv("MIXQUANT_CACHE", "")
    assert cache_root().name == "mixquant-agents"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIXQUANT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="not a folder"):
        cache_root()
    monkeypatch.chdir(tmp_path)
    for odd in ("~nobody-of-this-name/cache", "x" * 300):  # the first may be made, the second cannot
        monkeypatch.setenv("MIXQUANT_CACHE", odd)
        assert cache_root() == tmp_path / odd
    with pytest.raises(EngineStartError, match="name too long"):
        ensure(cache_root(), "m", PARTS, Builder(), quiet)


SCRIPT = textwrap.dedent(
    """
    import pathlib, sys, time
    from mixquant_agents.embedded.store import ensure
    root, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
    def build(folder):
        with (root / "calls").open("a") as file:
            file.write("x")
        (folder / "weights.bin").write_bytes(b"w" * 100_000)
        print("building", flush=True)
        time.sleep(seconds)
    print(ensure(root, "m", {"recipe": 1}, build, lambda *_: None), flush=True)
    """
)


def _start(root: pathlib.Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(root), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own interpreter and script


@pytest.mark.slow
def test_two_processes_build_once(tmp_path: pathlib.Path) -> None:
    processes = [_start(tmp_path, 0.5) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0].splitlines()[-1] for process in processes}
    assert len(answers) == 1
    assert (tmp_path / "calls").read_text() == "x"
    assert intact(pathlib.Path(answers.pop()))


def test_killed_build_leaves_no_folder_and_no_lock(tmp_path: pathlib.Path) -> None:
    process = _start(tmp_path, 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("m-") and path.is_dir()] == []
    started = time.monotonic()
    build = Builder()
    folder = ensure(tmp_path, "m", PARTS, build, quiet)
    assert time.monotonic() - started < 10
    assert build.calls == 1
    assert intact(folder)
    assert list(tmp_path.glob(".partial-*")) == []
    assert json.loads((folder / MANIFEST).read_text())["parts"] == PARTS

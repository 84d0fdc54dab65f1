"""Kills, full disks, read-only files, overflow, forks: clear words, no lost turn."""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest
from telemetry_help import make_turn

from mixquant_agents.errors import StoreError
from mixquant_agents.telemetry import QueueRecorder, StoreRecorder
from mixquant_agents.telemetry.events import Event
from mixquant_agents.telemetry.store.connection import connect_writer
from mixquant_agents.telemetry.store.reader import TurnStore

pytestmark = pytest.mark.slow

WRITER = textwrap.dedent(
    """
    import itertools, sys, time
    sys.path.insert(0, sys.argv[2])
    from telemetry_help import make_turn
    from mixquant_agents.telemetry import StoreRecorder
    recorder = StoreRecorder(sys.argv[1])
    for n in itertools.count():
        recorder.record(make_turn(turn_id=f"{sys.argv[3]}-{n}", thread_id=sys.argv[3]))
        print(n, time.time_ns(), flush=True)
        time.sleep(0.0005)
    """
)


@pytest.mark.parametrize("attempt", range(3))
def test_kill_loses_at_most_200_ms_and_corrupts_nothing(tmp_path: Path, attempt: int) -> None:
    path = tmp_path / "turns.sqlite"
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parents[1]), "w"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 # our own code
    assert process.stdout is not None
    said: list[tuple[int, int]] = []
    process.stdout.readline()
    began = time.monotonic()
    while time.monotonic() - began < 1.2 + 0.37 * attempt:
        number, instant = process.stdout.readline().split()
        said.append((int(number), int(instant)))
    killed = time.time_ns()
    process.send_signal(signal.SIGKILL)
    said += [(int(n), int(t)) for n, t in (line.split() for line in process.stdout.read().splitlines() if " " in line)]
    process.wait()
    store = TurnStore(path)
    with store.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        found = {row[0] for row in connection.execute("SELECT turn_id FROM turns")}
        rolled = connection.execute("SELECT sum(turns) FROM rollups WHERE level = 60").fetchone()[0]
    # A machine so busy that the producer itself stood still gets that much more: the writer stood still, too.
    still = max(later - earlier for (_, earlier), (_, later) in pairwise(said))
    must = {f"w-{number}" for number, instant in said if instant < killed - 200_000_000 - still}
    assert len(must) > 100
    assert must <= found
    assert rolled == len(found), "roll-ups and turns are of one transaction"
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="after"))
    recorder.close()
    assert store.turn("after") is not None


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    code = (
        WRITER.replace("itertools.count()", "range(600)").replace("time.sleep(0.0005)", "pass") + "\nrecorder.close()\n"
    )
    code += "assert recorder.dropped == 0 and recorder.problem is None, (recorder.dropped, recorder.problem)\n"
    command = [sys.executable, "-c", code, str(path), str(Path(__file__).parents[1])]
    processes = [
        subprocess.Popen([*command, f"p{n}"], stdout=subprocess.DEVNULL)  # noqa: S603 # our own code
        for n in range(4)
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    store = TurnStore(path)
    assert all(len(store.thread(f"p{n}", limit=1000)) == 600 for n in range(4))
    with store.reading() as connection:
        assert connection.execute("SELECT sum(turns) FROM rollups WHERE level = 3600").fetchone()[0] == 2400


def test_process_that_leaves_takes_no_log_with_it(tmp_path: Path) -> None:
    """The last connection to close a store deletes its log: nobody may take itself for the last while we write."""
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="before"))
    assert recorder.flush()
    time.sleep(0.3)  # whatever runs beside the writer has run
    code = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('SELECT count(*) FROM turns').fetchone(); connection.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)  # noqa: S603 # our own code
    assert Path(f"{path}-wal").exists()
    recorder.record(make_turn(turn_id="after"))
    assert recorder.flush()
    assert {turn.turn_id for turn in TurnStore(path).turns()} == {"before", "after"}
    recorder.close()


def test_full_disk_keeps_what_was_committed_and_goes_on_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "turns.sqlite"
    before, limits = make_turn(turn_id="before"), resource.getrlimit(resource.RLIMIT_FSIZE)
    recorder = StoreRecorder(path)
    recorder.record(before)
    assert recorder.flush()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    biggest = max(file.stat().st_size for file in tmp_path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (biggest + 8192, limits[1]))
    try:
        for n in range(300):
            recorder.record(make_turn(turn_id=f"full-{n}"))  # the turn itself never notices
        assert recorder.flush(2) is False
        problem = recorder.problem or ""
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in problem
    assert "disk" in problem
    assert "recording is retried" in caplog.text
    assert TurnStore(path).turn("before") is not None
    assert recorder.flush(10), "space came back: what was kept is written"
    assert recorder.dropped == 0
    assert len(TurnStore(path).turns(limit=500)) == 301
    recorder.close()


class _Full:
    """A sink whose disk stays full."""

    def __init__(self) -> None:
        self.calls = 0

    def write(self, batch: list[Event]) -> None:
        self.calls += 1
        raise StoreError("turn store x: the disk is full; free some space, or give another file")

    def retry_seconds(self) -> float | None:
        return None

    def lost(self) -> int:
        return 0

    def close(self) -> None:
        raise RuntimeError("even closing fails")


def test_failing_sink_is_told_once_and_stops_no_other(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from mixquant_agents.telemetry.store.writer import StoreSink

    path = tmp_path / "turns.sqlite"
    recorder = QueueRecorder([_Full(), StoreSink(path)], gather_seconds=0.0)
    for n in range(20):
        recorder.record(make_turn(turn_id=f"x{n}"))
        time.sleep(0.005)
    recorder.flush(1)
    recorder.close()
    assert len(TurnStore(path).turns()) == 20
    told = [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "the disk is full" in told[0].getMessage()


def test_read_only_file_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="kept"))
    recorder.close()
    # Root may write everything: the child becomes nobody once it has imported what it needs.
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from telemetry_help import make_turn\n"
        "from mixquant_agents.telemetry import StoreRecorder\n"
        "from mixquant_agents.telemetry.store.reader import TurnStore\n"
        "import datetime, encodings.idna, json, zlib; turn = make_turn()\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "recorder = StoreRecorder(sys.argv[1])\n"
        "recorder.record(turn)\n"
        "import time; end = time.monotonic() + 20\n"
        "while recorder.problem is None and time.monotonic() < end: time.sleep(0.01)\n"
        "print(recorder.flush(0.1), recorder.problem)\n"
        "try: recorder.check()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print([turn.turn_id for turn in TurnStore(sys.argv[1]).turns()])\n"
    )
    os.chmod(path, 0o444)
    open_to_all = [tmp_path, *list(tmp_path.parents)[:2]]
    modes = {folder: folder.stat().st_mode for folder in open_to_all}
    for folder in open_to_all:
        os.chmod(folder, 0o555)  # noqa: S103 # readable by all, writable by none
    try:
        command = [sys.executable, "-c", code, str(path), str(Path(__file__).parents[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 # our own code
    finally:
        for folder, mode in modes.items():
            os.chmod(folder, mode)
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert lines[0].startswith("False turn store")
    assert "read-only" in lines[0] or "cannot be opened" in lines[0]
    assert lines[1].startswith("StoreError turn store")
    assert lines[2] == "['kept']", "reading still works"


def test_overflow_is_counted_and_never_waits(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    blocker = connect_writer(path)
    blocker.execute("BEGIN IMMEDIATE")  # another process holds the lock
    recorder = StoreRecorder(path, queue_limit=50)
    turns = [make_turn(turn_id=f"x{n}") for n in range(500)]
    began = time.thread_time()  # its own time: a busy machine takes more of the clock
    for turn in turns:
        recorder.record(turn)
    assert time.thread_time() - began < 0.1
    assert recorder.flush(0.2) is False, "the lock is still held: nobody waited for it"
    assert recorder.dropped > 0
    blocker.execute("ROLLBACK")
    blocker.close()
    assert recorder.flush(20)
    recorder.close()
    assert len(TurnStore(path).turns(limit=1000)) == 500 - recorder.dropped


def test_turns_after_close_are_counted_not_raised(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    recorder.record(make_turn())
    recorder.close()
    recorder.close()
    recorder.record(make_turn())
    assert recorder.dropped == 1


def test_record_that_cannot_be_written_does_not_take_others_along(tmp_path: Path) -> None:
    recorder = StoreRecorder(tmp_path / "turns.sqlite")
    recorder.record(make_turn(turn_id="good-1"))
    recorder.record(make_turn(turn_id="bad", started_at="not an instant"))
    recorder.record(make_turn(turn_id="good-2"), prompt_token_ids=["not", "a", "token"])  # type: ignore[list-item]
    recorder.record(make_turn(turn_id="good-3"), content=object())  # type: ignore[arg-type]
    recorder.flush(2)
    recorder.close()
    assert {turn.turn_id for turn in TurnStore(tmp_path / "turns.sqlite").turns()} == {"good-1", "good-2", "good-3"}
    assert recorder.dropped == 1


def test_deleted_file_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    recorder.record(make_turn())
    assert recorder.flush()
    for file in tmp_path.iterdir():
        file.unlink()
    recorder.record(make_turn(turn_id="anew"))
    assert recorder.flush()
    recorder.close()
    assert [turn.turn_id for turn in TurnStore(path).turns()] == ["anew"]


def test_turns_are_written_at_the_end_of_the_program(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from telemetry_help import make_turn\n"
        "from mixquant_agents.telemetry import StoreRecorder\n"
        "StoreRecorder(sys.argv[1]).record(make_turn(turn_id='last')); raise SystemExit(3)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(Path(__file__).parents[1])]
    assert subprocess.run(command, check=False).returncode == 3  # noqa: S603 # our own code
    assert TurnStore(path).turn("last") is not None

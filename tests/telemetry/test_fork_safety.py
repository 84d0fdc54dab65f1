"""A fork takes no turn along: SQLite's table of locks is inherited, the locks are not."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from telemetry_help import make_turn

from mixquant_agents.telemetry import StoreRecorder
from mixquant_agents.telemetry.store.reader import TurnStore

pytestmark = pytest.mark.slow

# The parent, which had the store open when it forked, leaves first; then somebody looks in and leaves, too. Each of
# them must see that the child still has the file, or it deletes the log the child writes to.
LEAVING = textwrap.dedent(
    """
    import os, subprocess, sys, time
    sys.path.insert(0, sys.argv[2])
    from telemetry_help import make_turn
    from mixquant_agents.telemetry import StoreRecorder
    from mixquant_agents.telemetry.store.reader import TurnStore
    path = sys.argv[1]
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="parent"))
    assert recorder.flush(30)
    reader = TurnStore(path)
    assert len(reader.turns()) == 1
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        recorder.record(make_turn(turn_id="child-1"))
        assert recorder.flush(30) and recorder.dropped == 0
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        recorder.record(make_turn(turn_id="child-2"))
        assert recorder.flush(30)
        os._exit(0)  # no close: what is committed must be there all the same
    os.read(ready[0], 1)
    assert {turn.turn_id for turn in reader.turns()} == {"parent", "child-1"}, "reading goes on after a fork"
    recorder.close()
    reader.close()
    look = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT 1 FROM turns').fetchone()"
    subprocess.run([sys.executable, "-c", look + "; c.close()", path], check=True)
    assert os.path.exists(path + "-wal"), "the child's log was deleted"
    os.write(go[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    """
)


def test_parent_that_leaves_first_takes_no_turn_of_its_child_along(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    command = [sys.executable, "-c", LEAVING, str(path), str(Path(__file__).parent)]
    subprocess.run(command, check=True, timeout=120)  # noqa: S603 # our own code
    assert {turn.turn_id for turn in TurnStore(path).turns()} == {"parent", "child-1", "child-2"}


def _in_child(parent: StoreRecorder) -> None:
    parent.record(make_turn(turn_id="child"))
    assert parent.flush(30)
    assert parent.dropped == 0
    parent.close()


def test_forked_child_records_too(tmp_path: Path) -> None:
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path)
    recorder.record(make_turn(turn_id="parent"))
    assert recorder.flush()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(recorder,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    recorder.record(make_turn(turn_id="parent-2"))
    recorder.close()
    assert {turn.turn_id for turn in TurnStore(path).turns()} == {"parent", "child", "parent-2"}


def test_forks_in_the_middle_of_writing(tmp_path: Path) -> None:
    """Whatever the writer holds when the fork comes, the child neither hangs nor writes the parent's turns."""
    path = tmp_path / "turns.sqlite"
    recorder = StoreRecorder(path, gather_seconds=0.0)
    stop = threading.Event()
    count = 0

    def write() -> None:
        nonlocal count
        while not stop.is_set():
            recorder.record(make_turn(turn_id=f"p{count}"))
            count += 1
            time.sleep(0.0002)

    writer = threading.Thread(target=write)
    writer.start()
    children = []
    try:
        for n in range(8):
            time.sleep(0.03)
            child = os.fork()
            if not child:
                recorder.record(make_turn(turn_id=f"c{n}"))
                os._exit(0 if recorder.flush(30) else 1)
            children.append(child)
    finally:
        stop.set()
        writer.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert recorder.flush(30)
    recorder.close()
    assert recorder.dropped == 0
    store = TurnStore(path)
    with store.reading() as connection:
        found = {row[0] for row in connection.execute("SELECT turn_id FROM turns")}
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    assert found == {f"p{n}" for n in range(count)} | {f"c{n}" for n in range(8)}

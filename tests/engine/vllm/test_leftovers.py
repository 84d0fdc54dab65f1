"""What an engine's processes leave behind is found and removed, and nothing else."""

import os
import stat
import subprocess
import sys
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from mixquant_agents.engine.vllm.leftovers import (
    descendants,
    end_processes,
    segments_of,
    socket_folder,
    sockets_in,
    unlink,
)

SLEEP = "import time; time.sleep(60)"
TREE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


def test_socket_folder_is_one_for_this_process_and_private() -> None:
    folder = socket_folder()
    assert folder is not None
    assert socket_folder() == folder
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    made = Path(folder, "socket")
    made.touch()
    assert sockets_in(folder) == {str(made)}
    unlink([str(made), str(made)])
    assert sockets_in(folder) == frozenset()
    assert sockets_in(None) == frozenset()


@pytest.mark.slow
def test_socket_folder_goes_with_its_process_and_not_with_a_fork() -> None:
    code = (
        "import os\nfrom mixquant_agents.engine.vllm.leftovers import socket_folder\n"
        "folder, child = socket_folder(), os.fork()\n"
        "if child == 0: raise SystemExit(0)\n"
        "os.waitpid(child, 0); print(folder, os.path.isdir(folder))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own
    folder, there = out.stdout.split()
    assert there == "True"
    assert not os.path.exists(folder)


@pytest.mark.slow
def test_tree_of_processes_is_ended() -> None:
    parent = subprocess.Popen([sys.executable, "-c", TREE])  # noqa: S603  our own interpreter
    processes = descendants([parent.pid])
    while len(processes) < 2:
        time.sleep(0.05)
        processes = descendants([parent.pid])
    end_processes(processes, 5)
    parent.wait()
    assert not any(process.is_running() and process.status() != "zombie" for process in processes)
    end_processes(processes, 5)  # whoever has their ids by now is left alone
    assert descendants([parent.pid]) == []


@pytest.mark.slow
def test_shared_memory_of_others_is_found() -> None:
    mine = shared_memory.SharedMemory(create=True, size=4096)
    code = (
        "import sys\nfrom multiprocessing import resource_tracker, shared_memory\n"
        "resource_tracker.register = lambda *_: None\n"
        f"mine = shared_memory.SharedMemory(name={mine.name!r})\n"
        "own = shared_memory.SharedMemory(create=True, size=4096)\n"
        "print(own.name, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own interpreter
    try:
        assert child.stdout is not None
        name = child.stdout.readline().strip()
        segments = segments_of(descendants([child.pid]))
        assert segments == {f"/dev/shm/{name}"}
        child.kill()
        child.wait()
        unlink(segments)
        assert not os.path.exists(f"/dev/shm/{name}")
    finally:
        child.kill()
        child.communicate()
        mine.close()
        mine.unlink()

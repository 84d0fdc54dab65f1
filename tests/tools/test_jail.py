"""Programs that a model wrote: they run, end in time, and reach nothing outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mixquant_tools.errors import LimitError, ToolError, ToolSetupError
from mixquant_tools.jail import PythonJail, runner


def test_jail_runs_programs() -> None:
    jail = PythonJail()
    assert jail.as_text("import json, statistics\nprint(json.dumps(statistics.mean([1, 2])))") == "1.5"
    assert jail.as_text("open('x', 'w').write('hi'); print(open('x').read())") == "hi"
    assert "nothing printed" in jail.as_text("1 + 1")
    # What looks names up in __main__ finds the program's, and the names that an interactive Python has are there.
    assert jail.as_text("import pickle\nclass A: x = 3\nprint(pickle.loads(pickle.dumps(A())).x)\nexit()") == "3"
    with pytest.raises(ToolError) as failure:
        jail.as_text("def f():\n    return 1 / 0\nf()")
    assert "ZeroDivisionError" in str(failure.value)
    assert str(Path(__file__).parents[2]) not in str(failure.value)


@pytest.mark.slow
def test_jail_says_so_where_the_processor_s_time_is_up() -> None:
    jail = PythonJail(seconds=10)
    jail._settings["cpu"] = 1  # as several threads would use it up before the wall clock's
    with pytest.raises(LimitError, match="stopped after"):
        jail.as_text("while True: pass")


def test_jail_with_packages() -> None:
    assert PythonJail(packages=True, memory_bytes=2**30).as_text("import numpy; print(numpy.arange(3).sum())") == "3"


def test_jail_refuses_to_run_where_it_cannot_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixquant_tools.jail.landlock.abi", lambda: 0)
    with pytest.raises(ToolSetupError, match="Landlock"):
        PythonJail()


@pytest.mark.slow
def test_jail_leaves_no_process_behind() -> None:
    jail = PythonJail(seconds=0.5)
    began = time.monotonic()
    assert jail.run("import time; time.sleep(60)").stopped == "time"
    assert time.monotonic() - began < 20
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"jail/child.py" in _read(path)]
    assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_ordinary_programs_find_what_they_need() -> None:
    program = """
import fcntl, os, sqlite3, sys, tempfile, threading, time, signal, zlib, decimal
database = sqlite3.connect('x.db')
database.execute('CREATE TABLE t (a)')
database.execute('INSERT INTO t VALUES (1)')
database.commit()
thread = threading.Thread(target=lambda: time.sleep(0.01), name='named')
thread.start()
thread.join()
with tempfile.NamedTemporaryFile() as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    os.set_inheritable(file.fileno(), True)
    os.dup(file.fileno())
signal.setitimer(signal.ITIMER_REAL, 5)
print(database.execute('SELECT a FROM t').fetchone(), sys.stdout.isatty(), len(os.pipe()))
"""
    assert PythonJail().as_text(program) == "(1,) False 2"


DENIED = {
    "lease": "fcntl.fcntl(stdlib, 1024, 1)",
    "lease on the null device": "fcntl.fcntl(os.open('/dev/null', os.O_WRONLY), 1024, 1)",
    "watch on a folder": "fcntl.fcntl(folder, 1026, 1)",
    "owner of signals": "fcntl.fcntl(stdlib, 8, os.getppid())",
    "size of a pipe": "fcntl.fcntl(os.pipe()[0], 1031, 2**20)",
    "lock of a file": "fcntl.flock(stdlib, fcntl.LOCK_EX)",
    "lock of a folder": "fcntl.flock(folder, fcntl.LOCK_EX)",
    "attributes of a file": "fcntl.ioctl(stdlib, 0x80086601, bytearray(8))",
    "change of attributes": "fcntl.ioctl(stdlib, 0x40086602, bytes(8))",
    "value of an attribute": "os.getxattr(sys.argv[0] or '.', 'user.secret')",
    "value of an attribute outside": "os.getxattr('/etc/passwd', 'user.secret', follow_symlinks=False)",
    "value of an open file's attribute": "os.getxattr(stdlib, 'user.secret')",
    "names of attributes": "os.listxattr('/etc/passwd')",
    "names of an open file's attributes": "os.listxattr(stdlib)",
    "mount": "call(457, 0, 0, 0, 0)",
    "list of mounts": "call(458, 0, 0, 0, 0)",
    "handle of a path": "call(303, -100, b'/etc', ctypes.create_string_buffer(200), ctypes.create_string_buffer(8), 0)",
    "signal at the parent's end": "call(157, 1, 0, 0, 0)",
    "who may trace": "call(157, 0x59616d61, -1, 0, 0)",
    "user": "os.setuid(os.getuid())",
    "user of file access": "call(122, 0)",
    "capabilities": "call(126, ctypes.create_string_buffer(8), ctypes.create_string_buffer(24))",
    "another's shared memory": "call(31, 0, 0, 0)",
    "another's message queue": "call(241, b'q')",
    "asynchronous input": "call(206, 60000, ctypes.create_string_buffer(8))",
    "timers": "call(222, 0, 0, ctypes.create_string_buffer(8))",
    "writing back all files": "call(162)",
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86-64")
def test_what_reaches_outside_is_denied() -> None:
    program = f"""
import ctypes, fcntl, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*values):
    if libc.syscall(*values) < 0:
        raise OSError(ctypes.get_errno(), 'refused')
stdlib, folder = os.open(os.__file__, os.O_RDONLY), os.open(os.path.dirname(os.__file__), os.O_RDONLY)
for name, text in {DENIED!r}.items():
    try:
        eval(text)
    except PermissionError as error:
        print(name, error.errno)
    except Exception as error:
        print(name, repr(error))
    else:
        print(name, 'done')
"""
    assert PythonJail().as_text(program).splitlines() == [f"{name} 1" for name in DENIED]


LINGER = {
    "sleeps": "",
    "clears the signal": "ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)",
    "ignores signals": "[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) if n not in (9, 19)]",
    "changes its user": "ctypes.CDLL(None).setfsuid(1); ctypes.CDLL(None).setresuid(-1, -1, os.getuid())",
    "ends its thread": "threading.Thread(target=time.sleep, args=(9,)).start(); ctypes.CDLL(None).pthread_exit(0)",
}


@pytest.mark.slow
@pytest.mark.parametrize("trick", LINGER.values(), ids=LINGER.keys())
def test_program_ends_with_the_process_that_started_it(trick: str, tmp_path: Path) -> None:
    program = (
        "import ctypes, os, signal, threading, time\n"
        "open('/dev/null').close(); print(os.getpid(), flush=True)\n"
        f"{trick}\ntime.sleep(50)\nwhile True: time.sleep(1)"
    )
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys\n"
        "from mixquant_tools.jail import PythonJail, runner\n"
        "read = os.read\n"
        "def tell(*given):\n"
        "    piece = read(*given)\n"
        "    sys.stdout.buffer.write(piece); sys.stdout.flush()\n"
        "    return piece\n"
        "runner.os.read = tell\n"
        f"PythonJail(seconds=60).run({program!r})\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)  # noqa: S603 # our own script
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    assert Path(f"/proc/{child}").exists()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 5
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.slow
def test_four_programs_run_at_once_in_all_jails() -> None:
    began = time.monotonic()
    threads = [threading.Thread(target=PythonJail().run, args=("import time; time.sleep(0.5)",)) for _ in range(2 * 4)]
    for thread in threads:
        thread.start()
    while runner._slots._value > 0:  # a program sleeps half a second, and eight take turns: it is seen
        assert time.monotonic() - began < 30, "four programs never ran at once"
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    assert time.monotonic() - began > 1.0
    assert runner._slots._value == 4


@pytest.mark.slow
def test_program_that_finds_no_room_is_refused() -> None:
    for _ in range(4):
        assert runner._slots.acquire(timeout=1)
    try:
        with pytest.raises(LimitError, match="4 other programs are running"):
            PythonJail(seconds=0.01).run("print(1)")
    finally:
        for _ in range(4):
            runner._slots.release()

"""Stopped is told from slow by CPU time."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mixquant_agents.engine.vllm.liveness import Liveness, watch

BUSY = "import time\nwhile True:\n    sum(range(1_000_000)); time.sleep(0.1)"


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes a little, again and again: slow, but alive."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])  # noqa: S603  our own interpreter
    yield process
    process.kill()
    process.wait()


def looks(liveness: Liveness, seconds: float) -> bool:
    end = time.monotonic() + seconds
    stalled = False
    while not stalled and time.monotonic() < end:
        time.sleep(0.1)
        stalled = liveness.stalled()
    return stalled


@pytest.mark.slow
def test_slow_process_is_alive_and_stopped_process_is_not(busy: subprocess.Popen[bytes]) -> None:
    assert not looks(Liveness([busy.pid], 0.8), 2.5)
    os.kill(busy.pid, signal.SIGSTOP)
    assert looks(Liveness([busy.pid], 0.8), 5)
    os.kill(busy.pid, signal.SIGCONT)
    assert not looks(Liveness([busy.pid], 0.8), 2.5)


@pytest.mark.slow
def test_busy_child_of_a_waiting_process_keeps_it_alive() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)  # noqa: S603  our own interpreter
    try:
        assert not looks(Liveness([parent.pid], 1.0), 3)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


def test_time_in_which_nobody_looked_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended machine, or a whole process group that was stopped, says nothing of the engine."""
    now = [100.0]
    monkeypatch.setattr("mixquant_agents.engine.vllm.liveness.time.monotonic", lambda: now[0])
    monkeypatch.setattr("mixquant_agents.engine.vllm.liveness._cpu_seconds", lambda processes: 7.0)
    liveness = Liveness([1], 60)
    liveness.stalled()
    now[0] += 3600
    assert not liveness.stalled()
    for _ in range(57):
        now[0] += 1
        assert not liveness.stalled()
    now[0] += 1
    assert liveness.stalled()


def test_unknown_cpu_time_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    liveness = Liveness([2**22 + 1], 0.001)
    time.sleep(0.01)
    assert not liveness.stalled()
    assert not liveness.stalled()


async def test_watch_ends_with_the_last_turn_and_tells_of_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixquant_agents.engine.vllm.liveness._cpu_seconds", lambda processes: 7.0)
    stalls: list[bool] = []
    turns = [True]
    await asyncio.wait_for(watch([1], 0.1, lambda: bool(turns), lambda: stalls.append(True)), 5)
    assert stalls == [True]
    waiting = asyncio.create_task(watch([1], 60.0, lambda: bool(turns), lambda: stalls.append(True)))
    turns.clear()
    await asyncio.wait_for(waiting, 5)
    await watch([1], None, lambda: True, lambda: stalls.append(True))
    await watch([], 1.0, lambda: True, lambda: stalls.append(True))
    assert stalls == [True]

"""Which processor cores the engines of ``mixquant bench prefill`` run on.

A rented machine's cores are not equally fast, nor equally fast at all times (launching a step of 64 rows was seen to
take 7, 9.5 and 13 ms, for seconds on end). Engines that take turns are therefore kept on the same core, whichever is
the fastest at the moment; that is looked at again every second turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["by_speed", "pin_threads"]


def _loop() -> float:
    """Seconds of a fixed piece of Python, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        sum(i * i for i in range(20_000))
        best = min(best, time.perf_counter() - began)
    return best


def by_speed(measure: Callable[[], float] = _loop) -> list[int]:
    """This process's cores, the fastest first."""
    allowed = os.sched_getaffinity(0)
    seconds = {}
    try:
        for core in sorted(allowed):
            os.sched_setaffinity(0, {core})
            seconds[core] = measure()
    finally:
        os.sched_setaffinity(0, allowed)
    return sorted(seconds, key=lambda core: seconds[core])


def pin_threads(cores: Sequence[int], tasks: Path = Path("/proc/self/task")) -> int:
    """The main thread on the first of ``cores``, all other threads on the rest; how many threads there are."""
    threads = [int(path.name) for path in tasks.iterdir()]
    for thread in threads:
        own_cores: Iterable[int] = cores[:1] if thread == os.getpid() else cores[1:] or cores
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, own_cores)
    return len(threads)

"""Whether the engine's processes still do anything: a stopped core would keep a turn waiting for ever.

Slow is not stopped: a process that computes, waits for a device or answers its queues uses CPU time. One that was
stopped (SIGSTOP, a frozen container) or hangs inside a driver uses none at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

__all__ = ["Liveness", "watch"]

_STEP_LIMIT = 2.0
"""Seconds that count between two looks: where this process slept as well, nothing is known of the others."""


async def watch(
    processes: Sequence[int], limit: float | None, waiting: Callable[[], bool], on_stall: Callable[[], None]
) -> None:
    """Look after ``processes`` once a second, as long as somebody is ``waiting`` for them; call ``on_stall`` and end
    when they have done nothing for ``limit`` seconds. ``None`` waits for ever."""
    if limit is None or not processes:
        return
    liveness = Liveness(processes, limit)
    while waiting():
        await asyncio.sleep(min(1.0, limit / 4))
        if waiting() and liveness.stalled():
            on_stall()
            return


class Liveness:
    """Looks at processes and their children, every time it is asked.

    Args:
        processes: process ids.
        limit: seconds without any CPU time after which they count as stopped.
    """

    def __init__(self, processes: Sequence[int], limit: float) -> None:
        self._processes = processes
        self._limit = limit
        self._used: float | None = None
        self._looked = time.monotonic()
        self._idle = 0.0

    def stalled(self) -> bool:
        """Whether none of them has done anything for as long as the limit."""
        now = time.monotonic()
        elapsed, self._looked = min(now - self._looked, _STEP_LIMIT), now
        used = _cpu_seconds(self._processes)
        if used is None or used != self._used:
            self._used, self._idle = used, 0.0
        else:
            self._idle += elapsed
        return self._idle >= self._limit


def _cpu_seconds(processes: Sequence[int]) -> float | None:
    """CPU time of the processes and their children so far; ``None`` where it cannot be read, or there are none."""
    import psutil  # type: ignore[import-untyped]  # it has no stubs

    total = None
    for process_id in processes:
        with suppress(psutil.Error):
            root = psutil.Process(process_id)
            for process in (root, *root.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    total = (total or 0.0) + times.user + times.system
    return total

"""Time of GPU work, as a captured graph replays it."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

__all__ = ["capture", "replay_microseconds", "unwatched_objects"]

Output = TypeVar("Output")


@contextlib.contextmanager
def unwatched_objects() -> Iterator[None]:
    """For many measurements at once: capturing a graph makes Python look for garbage among all objects there are, a
    tenth of a second in an engine's process. Those of now are left alone meanwhile.

    Where the process has frozen its objects for good, as vLLM does behind its start, they stay so: they would be looked
    at again in every step that follows.
    """
    frozen_for_good = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_for_good:
            gc.unfreeze()


def capture(work: Callable[[], Output]) -> tuple[torch.cuda.CUDAGraph, Output]:
    """A graph of ``work``, which has run once before, and what its capture returned: replays write there."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    return graph, out


def replay_microseconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median microseconds of a captured ``work``."""
    graph, _ = capture(work)
    graph.replay()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return float(statistics.median(times))

"""How the programs of this folder time work on a GPU: replays of a CUDA graph, and the steps of a running engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mixquant_agents.quant.timing import replay_microseconds

__all__ = ["StepTime", "graph_microseconds", "time_steps"]


def graph_microseconds(work: Callable[[], Any], repeats: int = 5, inner: int = 1) -> float:
    """Median microseconds of one replay of the captured ``work``, divided by ``inner``."""
    return replay_microseconds(work, repeats) / inner


@dataclass(frozen=True, slots=True)
class StepTime:
    """One call of the model runner's ``execute_model``.

    Attributes:
        host_ms: until it returned; it only launches.
        start, end: events before its first kernel and after its last.
    """

    host_ms: float
    start: Any
    end: Any

    @property
    def gpu_ms(self) -> float:
        """Milliseconds from the first to the last kernel, which must have ended."""
        return float(self.start.elapsed_time(self.end))


def time_steps(worker: Any, steps: list[StepTime]) -> None:
    """Have every later step of vLLM's ``worker``, in this process, appended to ``steps``."""
    execute = worker.model_runner.execute_model

    def execute_model(*args: Any, **kwargs: Any) -> Any:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        began = time.perf_counter()
        result = execute(*args, **kwargs)
        host_ms = (time.perf_counter() - began) * 1e3
        end.record()
        steps.append(StepTime(host_ms, start, end))
        return result

    worker.model_runner.execute_model = execute_model

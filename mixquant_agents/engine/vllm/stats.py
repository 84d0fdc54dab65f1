"""The newest scheduler statistics, taken from vLLM's own stat-logger seam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["EngineStats", "StatsRecorder"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """State of the engine's scheduler after its newest step.

    Attributes:
        running: requests in the running batch.
        waiting: requests that wait for a place or for KV blocks.
        kv_cache_usage: share (0..1) of the KV blocks held by requests.
        unfinished: requests that the front end still waits for.
        preempted: requests put back because KV blocks ran out, since the start.
        warmed_tokens: tokens read ahead, since the start.
        kept_threads: prefixes held now, for threads whose tools run.
        kept_hits: turns that found their held prefix, since the start.
        evicted: held prefixes that were gone when they were asked for, since the start.
    """

    running: int
    waiting: int
    kv_cache_usage: float
    unfinished: int
    preempted: int
    warmed_tokens: int = 0
    kept_threads: int = 0
    kept_hits: int = 0
    evicted: int = 0


class StatsRecorder:
    """Handed to vLLM as a stat-logger factory; implements vLLM's ``StatLoggerBase`` by shape."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting = 0
        self.kv_cache_usage = 0.0
        self.preempted = 0

    def factory(self) -> Any:
        """A factory in vLLM's form. The logger it makes writes into this object."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        recorder = self

        class _Logger(StatLoggerBase):  # type: ignore[misc]  # vllm is untyped here
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                self.engine_index = engine_index

            def record(
                self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
            ) -> None:
                if scheduler_stats is not None:
                    recorder.running = scheduler_stats.num_running_reqs
                    skipped = getattr(scheduler_stats, "num_skipped_waiting_reqs", 0)
                    recorder.waiting = scheduler_stats.num_waiting_reqs + skipped
                    recorder.kv_cache_usage = scheduler_stats.kv_cache_usage
                if iteration_stats is not None:
                    recorder.preempted += iteration_stats.num_preempted_reqs

            def log_engine_initialized(self) -> None:
                """Nothing to log."""

        return _Logger

"""Telemetry: a recorder that never blocks or fails a turn, a SQLite store, metrics, spans, callbacks.

It wraps what it observes and is imported by it at one point only: :class:`Recorder`. Nothing heavy is imported here.

Reading order: :mod:`events` (what is recorded) → :mod:`protocols` (recorders and sinks) → :mod:`recorder` (the queue
and its thread) with :mod:`fork_safety` → :mod:`callbacks` (tools, nodes and agents of LangChain) with
:mod:`trace_context` → the sinks: :mod:`store` (SQLite) and :mod:`export` (Prometheus, OpenTelemetry) → :mod:`analysis`
(figures from the store). :mod:`metrics` and :mod:`tracing` are the names under which programs import the exports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mixquant_agents.telemetry.events import RunLink, Score, Span, SpanKind, TurnContent
from mixquant_agents.telemetry.export.perfetto import perfetto_trace
from mixquant_agents.telemetry.recorder import NullRecorder, QueueRecorder, Recorder
from mixquant_agents.telemetry.store.recorder import StoreRecorder
from mixquant_agents.telemetry.store.retention import Retention

if TYPE_CHECKING:
    from mixquant_agents.telemetry.callbacks import TelemetryCallback, observing

__all__ = [
    "NullRecorder",
    "QueueRecorder",
    "Recorder",
    "Retention",
    "RunLink",
    "Score",
    "Span",
    "SpanKind",
    "StoreRecorder",
    "TelemetryCallback",
    "TurnContent",
    "observing",
    "perfetto_trace",
]


def __getattr__(name: str) -> Any:
    if name not in ("TelemetryCallback", "observing"):  # these two import langchain_core
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mixquant_agents.telemetry import callbacks

    return getattr(callbacks, name)

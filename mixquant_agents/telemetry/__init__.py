"""Telemetry: a recorder that never blocks or fails a turn, a SQLite store, metrics, spans, callbacks.

It wraps what it observes and is imported by it at one point only: :class:`Recorder`. Nothing heavy is imported here.
"""

from __future__ import annotations

from mixquant_agents.telemetry.events import RunLink, Span, SpanKind, TurnContent
from mixquant_agents.telemetry.recorder import NullRecorder, QueueRecorder, Recorder
from mixquant_agents.telemetry.retention import Retention
from mixquant_agents.telemetry.store_recorder import StoreRecorder

__all__ = [
    "NullRecorder",
    "QueueRecorder",
    "Recorder",
    "Retention",
    "RunLink",
    "Span",
    "SpanKind",
    "StoreRecorder",
    "TurnContent",
]

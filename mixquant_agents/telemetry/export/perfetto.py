"""Threads as a timeline for Perfetto (ui.perfetto.dev), in the trace-event format that it and Chrome read.

Each thread is a process there. Its first track holds the turns with their phases inside, the others tools, nodes and
agents by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mixquant_agents.records import COUNTS, PHASES
from mixquant_agents.telemetry.store.models import StoredSpan
from mixquant_agents.telemetry.store.reader import TurnStore
from mixquant_agents.telemetry.store.rows import StoredTurn

__all__ = ["perfetto_trace"]

_TURNS = 1
_TRACKS = {"tool": 2, "retrieval": 3, "node": 4, "agent": 5}


def perfetto_trace(store: TurnStore, threads: Iterable[str], *, content: bool = False) -> dict[str, Any]:
    """The trace of these threads.

    Args:
        store: where they are recorded.
        threads: their ids.
        content: with arguments and results of tools, where they were recorded.
    """
    events: list[dict[str, Any]] = []
    for process, thread in enumerate(threads, 1):
        events += _names(process, thread)
        for turn in store.thread(thread, limit=100_000):
            events += _turn(process, turn)
        events += [_span(process, span, content) for span in store.spans(thread=thread, limit=100_000)]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _names(process: int, thread: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": f"thread {thread}"}}
    for name, track in {"turns": _TURNS, **_TRACKS}.items():
        yield {"ph": "M", "pid": process, "tid": track, "name": "thread_name", "args": {"name": name}}


def _turn(process: int, turn: StoredTurn) -> Iterator[dict[str, Any]]:
    counts = {count.name: value for count in COUNTS if (value := getattr(turn, count.field)) is not None}
    arguments = {
        "turn_id": turn.turn_id,
        "model": turn.model,
        "policy": turn.policy,
        "finish_reason": turn.finish_reason,
        "error": turn.error,
        **counts,
    }
    calls = f" → {', '.join(turn.tool_calls)}" if turn.tool_calls else ""
    whole = _slice(process, _TURNS, f"turn {turn.turn_index}{calls}", turn.started_us, turn.total_seconds or 0.0)
    yield {**whole, "cat": "turn", "args": {name: value for name, value in arguments.items() if value is not None}}
    begun = float(turn.started_us)
    for phase in PHASES:
        seconds = getattr(turn, phase.field)
        if seconds:
            yield {**_slice(process, _TURNS, phase.label.lower(), begun, seconds), "cat": "phase"}
            begun += seconds * 1e6


def _span(process: int, span: StoredSpan, content: bool) -> dict[str, Any]:
    kind = str(span.kind)
    arguments: dict[str, Any] = {"span_id": span.span_id, "cancelled": span.cancelled or None, "error": span.error}
    if content:
        arguments |= {"arguments": span.arguments, "result": span.result}
    event = _slice(process, _TRACKS.get(kind, max(_TRACKS.values()) + 1), span.name, span.started_us, span.seconds)
    return {**event, "cat": kind, "args": {name: value for name, value in arguments.items() if value is not None}}


def _slice(process: int, track: int, name: str, started_us: float, seconds: float) -> dict[str, Any]:
    """A complete event; instants and durations in microseconds."""
    return {"ph": "X", "pid": process, "tid": track, "name": name, "ts": started_us, "dur": seconds * 1e6}

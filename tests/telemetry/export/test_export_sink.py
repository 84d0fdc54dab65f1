"""An odd event stops no other on its way out, and nothing that cannot be sent is handed on."""

from __future__ import annotations

import math
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from telemetry_help import at, make_turn

from mixquant_agents.telemetry import QueueRecorder, Span, SpanKind, TurnContent
from mixquant_agents.telemetry.export.otel.metrics import OtelMetricsSink
from mixquant_agents.telemetry.metrics import PrometheusSink
from mixquant_agents.telemetry.tracing import SpanSink

ODD_TURNS: list[dict[str, Any]] = [
    {"model": "m\ud800"}, {"policy": "p\udcff"}, {"error": "E\ud800: x"}, {"thread_id": "\ud800"},
    {"started_at": "not an instant"}, {"total_seconds": math.inf}, {"finish_reason": "\ud800"},
]  # fmt: skip
ODD_SPANS: list[dict[str, Any]] = [
    {"name": "\ud800"}, {"name": None}, {"seconds": math.nan}, {"seconds": math.inf}, {"started_at": "yesterday"},
    {"arguments": "\ud800", "result": "\udcff"}, {"error": "\ud800"},
]  # fmt: skip


def tool(**values: Any) -> Span:
    base = {"kind": SpanKind.TOOL, "name": "search", "span_id": "s", "started_at": at(0), "seconds": 0.1}
    return Span(**{**base, **values})


@pytest.mark.parametrize("content", [False, True])
def test_odd_events_stop_no_other_and_can_be_sent(content: bool) -> None:
    exporter, registry, reader = InMemorySpanExporter(), CollectorRegistry(), InMemoryMetricReader()
    recorder = QueueRecorder(
        [SpanSink(SimpleSpanProcessor(exporter)), PrometheusSink(registry), OtelMetricsSink(MeterProvider([reader]))],
        content=content,
    )
    half = {"role": "user", "content": "half a pair: \ud800"}
    said = TurnContent(messages=[half], answer=half)
    recorder.record(make_turn())
    for values in ODD_TURNS:
        recorder.record(make_turn(**values), content=said)
        recorder.record(make_turn())
    for values in ODD_SPANS:
        recorder.record_span(tool(**values))
        recorder.record_span(tool())
    recorder.close()
    assert recorder.problem is None
    labels = {"model": "model", "engine": "scripted", "policy": "exact"}
    assert registry.get_sample_value("mixquant_turns_total", {**labels, "outcome": "ok"}) >= len(ODD_TURNS) + 1
    count = registry.get_sample_value("mixquant_turn_seconds_count", labels)
    assert registry.get_sample_value("mixquant_turn_seconds_sum", labels) == pytest.approx(0.55 * (count or 0))
    assert registry.get_sample_value("mixquant_tool_seconds_sum", {"tool": "search", "outcome": "ok"}) < math.inf
    generate_latest(registry).decode()
    spans = exporter.get_finished_spans()
    assert len([span for span in spans if span.name == "chat model"]) >= len(ODD_TURNS) + 1
    assert len([span for span in spans if span.name == "execute_tool search"]) >= len(ODD_SPANS)
    assert encode_spans(spans).SerializeToString()
    data = reader.get_metrics_data()
    assert data is not None
    assert encode_metrics(data).SerializeToString()
    # Without an instant or a duration there is no place among the spans (four), nor a duration to count (two).
    assert recorder.dropped == 6


def test_recorder_of_others_ends_no_run() -> None:
    from langchain_core.runnables import RunnableLambda

    from mixquant_agents.telemetry.callbacks import TelemetryCallback

    class Leaving:
        wants_content = False

        def record(self, turn: Any, **_: Any) -> None: ...

        def record_span(self, span: Any) -> None:
            raise SystemExit(3)

        def link(self, link: Any) -> None:
            raise SystemExit(3)

        def flush(self, timeout: float = 5.0) -> bool:
            return True

        def close(self) -> None: ...

    run = RunnableLambda(lambda value: value + 1)
    assert run.invoke(1, {"callbacks": [TelemetryCallback(Leaving())]}) == 2

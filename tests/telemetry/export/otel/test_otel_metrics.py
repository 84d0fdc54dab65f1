"""OpenTelemetry metrics: the conventions' names, units and bounds."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from telemetry_help import at, make_turn

from mixquant_agents.telemetry import QueueRecorder, Span, SpanKind
from mixquant_agents.telemetry.export.buckets import FIRST_TOKEN
from mixquant_agents.telemetry.export.otel.metrics import OtelMetricsSink


def test_opentelemetry_metrics_follow_the_conventions() -> None:
    reader = InMemoryMetricReader()
    recorder = QueueRecorder([OtelMetricsSink(MeterProvider([reader]))])
    recorder.record(make_turn())
    recorder.record(make_turn(error="EngineDeadError: gone"))
    recorder.record_span(Span(kind=SpanKind.TOOL, name="search", span_id="x", started_at=at(0), seconds=0.1))
    recorder.close()
    data = reader.get_metrics_data()
    assert data is not None
    metrics = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    assert set(metrics) == {
        "gen_ai.client.token.usage", "gen_ai.client.operation.duration", "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token",
    }  # fmt: skip
    first = metrics["gen_ai.server.time_to_first_token"]
    assert first.unit == "s"
    points = list(first.data.data_points)
    assert tuple(points[0].explicit_bounds) == FIRST_TOKEN
    assert {point.attributes.get("error.type") for point in points} == {None, "EngineDeadError"}
    usage = {
        point.attributes["gen_ai.token.type"]: point for point in metrics["gen_ai.client.token.usage"].data.data_points
    }
    assert (usage["input"].sum, usage["output"].sum) == (2000, 102)
